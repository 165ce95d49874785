"""Runs lm-eval's tasks of this folder; with an interpreter that has lm-eval and mlx-lm, and no
Bulkhead.

`python harness.py MODEL OUT [URL]`: against the completions endpoint at URL, else by mlx-lm's own
evaluation. The metrics, and what each sample got, go into the file OUT as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

TASKS = {True: ["bulkhead_choice", "bulkhead_generation"], False: ["bulkhead_perplexity"]}
"""By whether lm-eval is to put the model's first token before a text of the task. Of texts whose
perplexity is measured it always does, and would do it twice if it were told to."""


def main(model: str, out: str, url: str = "") -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    os.chdir(Path(__file__).parent)
    metrics: dict[str, Any] = {}
    answers: dict[str, Any] = {}
    for first_token, tasks in TASKS.items():
        results: Any = lm_eval.simple_evaluate(
            model=_served(model, url, first_token) if url else _direct(model),
            tasks=tasks,
            task_manager=TaskManager(include_path="tasks", include_defaults=False),
            bootstrap_iters=0,
        )
        metrics.update(results["results"])
        for task, samples in results["samples"].items():
            answers[task] = {sample["doc_id"]: sample["resps"] for sample in samples}
    Path(out).write_text(json.dumps({"metrics": metrics, "samples": answers}))


def _served(model: str, url: str, first_token: bool) -> Any:
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    # As `lm_eval --model local-completions --model_args …` does.
    return LocalCompletionsAPI(
        model=os.environ["SERVED_MODEL"],
        base_url=url,
        tokenizer=model,
        tokenizer_backend="huggingface",
        add_bos_token=first_token,
        num_concurrent=4,
        batch_size=3,
        max_retries=1,
    )


def _direct(model: str) -> Any:
    from mlx_lm.evaluate import MLXLM

    return MLXLM(model, use_chat_template=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
