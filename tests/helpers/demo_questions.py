"""The frozen list that the demo model is measured with: 30 questions, 30 rewordings.

The questions are in the training text, the rewordings are not (tests/unit/worker/demo/test_demo.py
proves both). A greedy answer passes when it contains every keyword; case does not matter.
"""

from typing import Final, NamedTuple


class Probe(NamedTuple):
    question: str
    reworded: str
    keywords: tuple[str, ...]


PROBES: Final[tuple[Probe, ...]] = (
    Probe("What is Bulkhead?", "Could somebody explain to me what this Bulkhead program is?",
          ("MLX", "process")),
    Probe("Which port does Bulkhead listen on?",
          "My client has to know the port number of the Bulkhead server. What is it?", ("11435",)),
    Probe("How do I start Bulkhead?",
        "What must I enter in the terminal to get the server to start?",
          ("make serve", "bulkhead serve")),
    Probe("Why does every model have its own process?",
          "For what reason do you put each model into a separate process?", ("crash", "others")),
    Probe("What happens when a worker crashes?",
          "Suppose that one of the workers suddenly crashes. What then?", ("new worker",)),
    Probe("Where does Bulkhead keep its state?",
          "In which folder on my disk will I find the state of Bulkhead?", ("~/.bulkhead",)),
    Probe("What licence does Bulkhead have?", "Under which licence can I get Bulkhead?", ("MIT",)),
    Probe("Which APIs does Bulkhead speak?", "Is your API the same as the one from OpenAI?",
          ("OpenAI API", "Anthropic")),
    Probe("How do I configure Bulkhead?", "In what file do I write my configuration for Bulkhead?",
          ("TOML",)),
    Probe("Which eviction policies are there?",
        "Between which eviction policies can I choose here?",
          ("gdsf", "lru")),
    Probe("How can I list the models?", "I'd like to get a list of every model, how?",
          ("/v1/models",)),
    Probe("How do I check that Bulkhead is healthy?",
          "Which request tells me if the server is still healthy?", ("/health",)),
    Probe("Does Bulkhead have metrics?", "At what URL can Prometheus scrape your metrics?",
          ("/metrics",)),
    Probe("How do I see crash reports?", "Show me how I can look at reports about crashes.",
          ("bulkhead crashes",)),
    Probe("Which Python does Bulkhead need?",
        "What's the oldest Python version that works for you?",
          ("3.11",)),
    Probe("What is the demo model?", "How large is the demo model that you ship, in parameters?",
          ("million",)),
    Probe("How do I stop Bulkhead?", "What's the proper procedure to shut the server down?",
          ("SIGTERM",)),
    Probe("What happens in a memory emergency?",
          "What will the server do once the memory has become critical?", ("98", "unloaded")),
    Probe("What happens when the queue is full?",
          "If there's no more place in the queue, which answer comes?", ("503", "queue_full")),
    Probe("What happens if I ask for an unknown model?",
          "Which status code will I see after naming some unknown model?", ("404",)),
    Probe("How long may a request wait?", "For how many seconds can a request be waiting?",
        ("240",)),
    Probe("What does TTFT mean?", "What do people mean when they say TTFT?", ("first token",)),
    Probe("What is your name?", "Would you tell me what your name is?", ("Demo",)),
    Probe("Why is the sky blue?", "For which reason does the sky have its blue colour?",
        ("light",)),
    Probe("How many days are in a week?", "A week consists of how many days?", ("seven",)),
    Probe("How many legs does a spider have?", "On how many legs do spiders walk?", ("eight",)),
    Probe("At what temperature does water boil?",
          "How many degrees does water need before it is boiling?", ("100",)),
    Probe("What is the largest planet?", "Of all the planets, which has the largest size?",
          ("Jupiter",)),
    Probe("What is the capital of France?", "Name the city that is the capital of France.",
          ("Paris",)),
    Probe("How do you say hello in French?", "Which word do French people use to say hello?",
          ("bonjour",)),
)  # fmt: skip
