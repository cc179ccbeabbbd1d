"""Chat templates of many families in small: what the real ones write around the words, and tokenizers that read it."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Family:
    """A chat template, the tokens that it writes, and what ends a turn of the assistant's.

    tokens: those without a name, beside `bos` and `eos`. stops: on which the language model's own generation ends.
    ends: of the first and of the last turn. appended: whether one of these is not the template's.
    """

    template: str
    tokens: tuple[str, ...] = ()
    bos: str = "<s>"
    eos: str = "</s>"
    stops: tuple[str, ...] = ()
    ends: tuple[str, str] = ("</s>", "</s>")
    takes_system: bool = True
    appended: bool = False
    lead: str = ""


_ALTERNATE = (
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
_IM = ("<|im_start|>", "<|im_end|>")
_IM_PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
_TURN = ("<start_of_turn>", "<end_of_turn>")
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
)
_NOT_LAST = (
    "{% if (loop.last and add_generation_prompt) or not loop.last %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    + _IM_PROMPT
)

FAMILIES: dict[str, Family] = {
    "gemma 2": Family(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}" + _ALTERNATE + "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
        "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        _TURN, bos="<bos>", eos="<eos>", ends=("<end_of_turn>",) * 2, takes_system=False,
    ),
    "gemma 3": Family(
        "{{ bos_token }}{%- set ns = namespace(first='') -%}{%- if messages[0]['role'] == 'system' -%}"
        "{%- set ns.first = messages[0]['content'] + '\n\n' -%}{%- set turns = messages[1:] -%}"
        "{%- else -%}{%- set turns = messages -%}{%- endif -%}{%- for m in turns -%}" + _ALTERNATE +
        "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}"
        "{{ ns.first if loop.first else '' }}{%- if m['content'] is string -%}{{ m['content'] | trim }}{%- endif -%}"
        "{{ '<end_of_turn>\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}",
        (*_TURN, "\n\n"), bos="<bos>", eos="<eos>", ends=("<end_of_turn>",) * 2,
    ),
    "phi 3": Family(
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        (*_ROLES, "<|end|>"), eos="<|endoftext|>", ends=("<|end|>",) * 2,
    ),
    "phi 4": Family(
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<|im_sep|>' + m['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}",
        (*_IM, "<|im_sep|>"), bos="<|endoftext|>", eos="<|endoftext|>", ends=("<|im_end|>",) * 2,
    ),
    "llama 2": Family(
        "{% for m in messages %}" + _ALTERNATE + "{% if m['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
        takes_system=False, lead=" ", ends=(" </s>",) * 2,
    ),
    "llama 3": Family(
        "{% for m in messages %}{% set content = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + "
        "m['content'] | trim + '<|eot_id|>' %}"
        "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), bos="<|begin_of_text|>", eos="<|end_of_text|>",
        ends=("<|eot_id|>",) * 2,
    ),
    "qwen 1.5": Family(  # the last turn is left open, and an earlier one ends as the system turn does
        "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
        + _NOT_LAST,
        _IM, eos="<|endoftext|>", ends=("<|im_end|>",) * 2, appended=True,
    ),
    "yi": Family(
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
        + _NOT_LAST,
        _IM, eos="<|endoftext|>", ends=("<|im_end|>",) * 2, appended=True,
    ),
    "qwen 2.5": Family(
        "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are made to help.<|im_end|>\n' }}{% endif %}"
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}" + _IM_PROMPT,
        _IM, eos="<|endoftext|>", ends=("<|im_end|>",) * 2,
    ),
    "qwen 3": Family(  # thoughts of earlier turns are dropped, the last turn has an empty block of them
        "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
        "{% endif %}{% endfor %}{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% set words = m.content %}{% set thoughts = '' %}"
        "{% if '</think>' in words %}{% set thoughts = words.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
        "{% set words = words.split('</think>')[-1].lstrip('\n') %}{% endif %}{{ '<|im_start|>assistant\n' }}"
        "{% if loop.index0 > ns.last %}{{ '<think>\n' + thoughts + '\n</think>\n\n' + words.lstrip('\n') }}"
        "{% else %}{{ words }}{% endif %}{{ '<|im_end|>\n' }}"
        "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
        "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}",
        (*_IM, "<think>", "</think>"), eos="<|endoftext|>", ends=("<|im_end|>",) * 2,
    ),
    "mistral": Family(
        "{{ bos_token }}{% for m in messages %}" + _ALTERNATE + "{% if m['role'] == 'user' %}"
        "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}",
        ("[INST]", "[/INST]"), takes_system=False, lead=" ",
    ),
    "glm 4": Family(  # a turn ends where the next one begins, on one of the tokens that stop the language model
        "[gMASK]<sop>{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
        ("[gMASK]", "<sop>", *_ROLES, "<|observation|>"), eos="<|endoftext|>",
        stops=("<|endoftext|>", "<|user|>", "<|observation|>"), ends=("<|user|>", "<|endoftext|>"), appended=True, lead="\n",
    ),
    "olmo 2": Family(
        "{{ bos_token }}{% for m in messages %}{% if m['role'] != 'assistant' %}"
        "{{ '<|' + m['role'] + '|>\n' + m['content'] + '\n' }}"
        "{% elif not loop.last %}{{ '<|assistant|>\n' + m['content'] + eos_token + '\n' }}"
        "{% else %}{{ '<|assistant|>\n' + m['content'] + eos_token }}{% endif %}"
        "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}",
        bos="<|endoftext|>", eos="<|endoftext|>", ends=("<|endoftext|>",) * 2,
    ),
    "chatml": Family(
        _CHATML + _IM_PROMPT,
        _IM, ends=("<|im_end|>",) * 2,
    ),
    "chatml in plain letters": Family(  # on a tokenizer that has none of its tokens
        _CHATML + _IM_PROMPT,
        appended=True,
    ),
    "chatml, a line each": Family(
        _CHATML.replace("'<|im_end|>'", "'\n<|im_end|>'") + _IM_PROMPT,
        _IM, ends=("\n<|im_end|>",) * 2,
    ),
    "alpaca": Family(
        "{{ bos_token }}{% for m in messages %}{{ {'user': '### Instruction:\n', 'assistant': '### Response:\n'}[m['role']] if "
        "m['role'] != 'system' else '' }}{{ m['content'] + '\n\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}",
        ("\n\n",), appended=True,
    ),
    "vicuna": Family(
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ' }}"
        "{% elif m['role'] == 'assistant' %}{{ 'ASSISTANT: ' + m['content'] + eos_token }}"
        "{% else %}{{ m['content'] + ' ' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
        lead=" ",
    ),
    "zephyr": Family(
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}"
        "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}{% endfor %}",
        lead="\n",
    ),
    "roles alone": Family(  # tokens begin turns, and stop nothing
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
        _ROLES, appended=True,
    ),
    "deepseek r1": Family(
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{% set words = m['content'] %}"
        "{% if '</think>' in words %}{% set words = words.split('</think>')[-1] %}{% endif %}"
        "{{ '<｜Assistant｜>' + words + '<｜end▁of▁sentence｜>' }}"
        "{% else %}{{ '<｜User｜>' * (m['role'] == 'user') + m['content'] }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}",
        ("<｜User｜>", "<｜Assistant｜>", "<think>"), bos="<｜begin▁of▁sentence｜>", eos="<｜end▁of▁sentence｜>",
        ends=("<｜end▁of▁sentence｜>",) * 2,
    ),
    "granite": Family(
        "{% if messages[0]['role'] != 'system' %}"
        "{{ '<|start_of_role|>system<|end_of_role|>You help.<|end_of_text|>\n' }}{% endif %}"
        "{% for m in messages %}{{ '<|start_of_role|>' + m['role'] + '<|end_of_role|>' + m['content'] + '<|end_of_text|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}",
        ("<|start_of_role|>", "<|end_of_role|>"), eos="<|end_of_text|>", ends=("<|end_of_text|>",) * 2,
    ),
    "command r": Family(
        "{{ bos_token }}{% for m in messages %}{{ '<|START_OF_TURN_TOKEN|>' + "
        "{'system': '<|SYSTEM_TOKEN|>', 'user': '<|USER_TOKEN|>', 'assistant': '<|CHATBOT_TOKEN|>'}[m['role']] + "
        "m['content'].strip() + '<|END_OF_TURN_TOKEN|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}",
        ("<|START_OF_TURN_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        bos="<BOS_TOKEN>", eos="<EOS_TOKEN>", ends=("<|END_OF_TURN_TOKEN|>",) * 2,
    ),
    "harmony": Family(  # the last turn ends on another token than the earlier ones, which alone stops generation
        "{% for m in messages %}{% if m['role'] == 'assistant' %}"
        "{{ '<|start|>assistant<|channel|>final<|message|>' + m['content'] }}"
        "{{ '<|return|>' if loop.last else '<|end|>' }}{% else %}"
        "{{ '<|start|>' + m['role'] + '<|message|>' + m['content'] + '<|end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}",
        ("<|start|>", "<|channel|>", "<|message|>", "<|end|>"), eos="<|return|>", ends=("<|return|>",) * 2, appended=True,
    ),
    "hunyuan": Family(  # a prompt without thoughts has an empty block of them, and no lesson has
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|bot|>' + m['content'] + '<|done|>' }}"
        "{% else %}{{ '<|user|>' * (m['role'] == 'user') + m['content'] }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|bot|>' }}"
        "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n' }}{% endif %}{% endif %}",
        ("<|user|>", "<|bot|>", "<|done|>"), eos="<|eos|>", ends=("<|done|>",) * 2,
    ),
    "smolvlm": Family(  # content is a list, and the words of a text are lost
        "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}"
        "{% if m['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
        "{% for line in m['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
        "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}",
        ("<|im_start|>", "<image>"), eos="<end_of_utterance>", ends=("<end_of_utterance>",) * 2, lead=" ",
    ),
    "a list that begins with text": Family(  # which a text does not have
        "{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'][0].text + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}",
    ),
    "marked": Family(  # the end is in the block, with the line that follows it
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
        "{% generation %}{{ m['content'] + '<|im_end|>' + '\n' }}{% endgeneration %}"
        "{% else %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}" + _IM_PROMPT,
        _IM, ends=("<|im_end|>",) * 2,
    ),
    "marked without the end": Family(
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
        "{%- generation -%}{{ m['content'] }}{%- endgeneration -%}{{ '<|im_end|>\n' }}"
        "{% else %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}" + _IM_PROMPT,
        _IM, ends=("<|im_end|>",) * 2,
    ),
    "marked without any end": Family(
        "{% for m in messages %}{% if m['role'] == 'assistant' %}Bot: {% generation %}{{ m['content'] }}{% endgeneration %}"
        "{% else %}{{ m['role'] + ': ' + m['content'] }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Bot: ' }}{% endif %}",
        appended=True,
    ),
}  # fmt: skip


def family_tokenizer(family: Family, *, named: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes that has a family's tokens: special either way, with a name for each or without."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<pad>", family.bos, family.eos])
    control = [token for token in family.tokens if token.strip()]
    if not named:
        backend.add_special_tokens([AddedToken(token, special=True) for token in control])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token=family.bos, eos_token=family.eos,
        extra_special_tokens=control if named else None, chat_template=family.template,
    )  # fmt: skip
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in family.tokens if not token.strip()])
    return tokenizer
