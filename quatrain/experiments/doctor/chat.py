"""How prompts become tokens: the chat template, the beginning-of-sequence token, the generation prompt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from quatrain.experiments.doctor.finding import Finding, error, ok, warning
from quatrain.experiments.doctor.patient import Patient


def check_chat(patient: Patient) -> Iterator[Finding]:
    policy, prompts = patient.policy, [item.prompt for item in patient.starts]
    tokenizer, messages = policy.tokenizer, [prompt for prompt in prompts if not isinstance(prompt, str)]
    template = getattr(tokenizer, "chat_template", None)
    if messages and (not template or policy.chat_template is False):
        yield error(
            "prompts are in the model's format",
            f"{len(messages)} of {len(prompts)} prompts are chat messages, and there is no chat template",
            "nothing says how messages become one text: the run stops at the first of them",
            "use an instruction-tuned model, set tokenizer.chat_template, or give prompts as plain texts",
        )
        return
    wrapped = messages or (prompts if policy.chat_template else [])
    if wrapped:
        yield generation_prompt(policy, wrapped[0])
    elif template and _changes(tokenizer, prompts[0]):
        yield (
            warning(
                "prompts are in the model's format",
                "the model has a chat template, and the prompts are plain texts that it would wrap",
                "an instruction-tuned model answers best, and stops, in the format that it was tuned on",
                "chat=true wraps plain prompts as one user message; chat=false says that plain is meant",
            )
            if policy.chat_template is None
            else ok("prompts are in the model's format", "plain texts, as asked (chat=false)")
        )
    else:
        yield ok("prompts are in the model's format", "plain texts, and no template that would change them")
    yield doubled_start(policy, prompts)


def generation_prompt(policy: Any, prompt: Any) -> Finding:
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(message) for message in prompt]
    with_it, without = (
        list(policy.tokenizer.apply_chat_template(messages, add_generation_prompt=wanted, return_dict=False)) for wanted in (True, False)
    )
    check = "prompts are in the model's format"
    if list(policy.encode(prompt)) != with_it or (with_it == without and _changes(policy.tokenizer, "hello")):
        return warning(
            check,
            "the prompt does not end where the assistant's answer begins: the template adds no generation prompt",
            "the policy would first have to write the assistant's header, and is trained on that",
            "use a template with {% if add_generation_prompt %}",
        )
    return ok(check, f"the chat template is applied, with a generation prompt of {len(with_it) - len(without)} tokens")


def doubled_start(policy: Any, prompts: list[Any]) -> Finding:
    start = policy.tokenizer.bos_token_id
    if start is None:
        return ok("one beginning of sequence", "the tokenizer has no such token")
    counts = [list(policy.encode(prompt)).count(start) for prompt in prompts]
    if max(counts) > 1 and policy.encode(prompts[0])[:2] == [start, start]:
        return warning(
            "one beginning of sequence",
            "prompts begin with the beginning-of-sequence token twice",
            "the model never saw that: its first predictions are worse",
            "leave it out of the text, or out of the template: the tokenizer adds it",
        )
    return ok("one beginning of sequence", f"at most {max(counts)} per prompt")


def _changes(tokenizer: Any, prompt: str) -> bool:
    """Does the template make anything but the text itself of one user message?"""
    text = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
    return text.strip() != prompt.strip()
