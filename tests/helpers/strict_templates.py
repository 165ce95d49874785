"""Chat templates that raise over what many clients send, as those of published models do.

Written after the templates of Mistral 7B v0.3, Gemma 2 and 3, Llama 2 and 3.1; each raises over
the same lists of messages as its model's own.
"""

from __future__ import annotations

MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}"
    "{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}"
    "{%- endif %}{%- set ns = namespace(index=0) %}"
    "{%- for message in loop_messages %}"
    "{%- if not (message.role == 'tool' or message.role == 'tool_results'"
    " or (message.tool_calls is defined and message.tool_calls is not none)) %}"
    "{%- if (message['role'] == 'user') != (ns.index % 2 == 0) %}"
    "{{- raise_exception('After the optional system message, conversation roles must alternate"
    " user/assistant/user/assistant/...') }}{%- endif %}{%- set ns.index = ns.index + 1 %}"
    "{%- endif %}{%- endfor %}"
    "{%- for message in loop_messages %}"
    "{%- if message['role'] == 'user' %}"
    "{%- if tools is not none and loop.last %}[AVAILABLE_TOOLS]{{ tools | tojson }}"
    "[/AVAILABLE_TOOLS]{%- endif %}"
    "{%- if loop.first and system_message is defined %}"
    "[INST]{{ system_message }}\n\n{{ message['content'] }}[/INST]"
    "{%- else %}[INST]{{ message['content'] }}[/INST]{%- endif %}"
    "{%- elif message.tool_calls is defined and message.tool_calls is not none %}[TOOL_CALLS] ["
    "{%- for tool_call in message.tool_calls %}"
    "{{- tool_call.function | tojson }}"
    "{%- if not tool_call.id is defined or tool_call.id | length != 9 %}"
    "{{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}"
    "{%- endif %}{{- tool_call.id }}{%- endfor %}]"
    "{%- elif message['role'] == 'assistant' %}{{ message['content'] }}</s>"
    "{%- elif message['role'] == 'tool' %}[TOOL_RESULTS]{{ message['content'] }}"
    "{%- if not message.tool_call_id is defined or message.tool_call_id | length != 9 %}"
    "{{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}"
    "{%- endif %}{{- message.tool_call_id }}[/TOOL_RESULTS]"
    "{%- else %}{{- raise_exception('Only user and assistant roles are supported, with the"
    " exception of an initial optional system message!') }}{%- endif %}{%- endfor %}"
)

GEMMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "<start_of_turn>{{ role }}\n{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)

GEMMA_3 = (
    "{%- if messages[0]['role'] == 'system' -%}"
    "{%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}"
    "{%- set loop_messages = messages[1:] -%}{%- else -%}"
    "{%- set first_user_prefix = '' -%}{%- set loop_messages = messages -%}{%- endif -%}"
    "{%- for message in loop_messages -%}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{%- endif -%}{{ '<start_of_turn>' + message['role'] + '\n' }}"
    "{{ first_user_prefix if loop.first else '' }}{{ message['content'] | trim }}"
    "{{ '<end_of_turn>\n' }}{%- endfor -%}"
)

LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system_message = messages[0]['content'] %}"
    "{% set loop_messages = messages[1:] %}{% else %}{% set loop_messages = messages %}"
    "{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}{% if loop.index0 == 0 and system_message is defined %}"
    "{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}[INST] {{ content }} [/INST]"
    "{% elif message['role'] == 'assistant' %} {{ content }} </s>{% endif %}{% endfor %}"
)

LLAMA_3 = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] | trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}"
    "<|system|>{{ system }}<|eot|>"
    "{%- if tools is not none %}{%- if messages | length != 0 %}"
    "{%- set first = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}"
    "{%- else %}{{- raise_exception(\"Cannot put tools in the first user message when there's no"
    ' first user message!") }}{%- endif %}<|user|>{{ tools | tojson }}{{ first }}<|eot|>'
    "{%- endif %}{%- for message in messages %}"
    "{%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}"
    "<|{{ message['role'] }}|>{{ message['content'] | trim }}<|eot|>"
    "{%- elif 'tool_calls' in message %}{%- if not message.tool_calls | length == 1 %}"
    "{{- raise_exception('This model only supports single tool-calls at once!') }}{%- endif %}"
    "<|assistant|>{{ message.content }}{{ message.tool_calls[0].function | tojson }}<|eot|>"
    "{%- else %}<|ipython|>{{ message.content }}<|eot|>{%- endif %}{%- endfor %}"
)

SYSTEM_FIRST = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' and not loop.first %}"
    "{{ raise_exception('System message must be at the beginning.') }}{% endif %}"
    "{{ message['role'] + ': ' + message['content'] }}"
    "{% for call in message.tool_calls or [] %}{{ call | tojson }}{% endfor %}"
    "{{ '\n' }}{% endfor %}"
)
"""As Qwen 3.5's, which takes anything else."""

STRICT = {
    "mistral": MISTRAL,
    "gemma-2": GEMMA_2,
    "gemma-3": GEMMA_3,
    "llama-2": LLAMA_2,
    "llama-3": LLAMA_3,
    "system-first": SYSTEM_FIRST,
}
