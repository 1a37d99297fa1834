"""Templates: from a prompt to token ids, the same way everywhere.

One BOS, a pinned date, a system message that arrives even where the template knows no system role, no thinking block.
What was done is in `Encoder.record`, which goes into every manifest.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from emotrace.datasets import Prompt, Prompts, PromptsLike
from emotrace.labels import EmotraceError
from emotrace.specials import Specials, check_switch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DATE = "2024-07-26"
"""Day that dated chat templates are told, so that prompts of different days are the same prompts."""
_PROBE = "Zq system probe"
_CLOCK = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1""")
_PINNED = (  # transformers passes no functions to a template, so its clock is replaced by a macro of the same name
    "{%- macro strftime_now(form) -%}{%- if form in pinned_dates -%}{{- pinned_dates[form] -}}"
    "{%- else -%}{{- raise_exception('emotrace cannot pin the date format ' ~ form) -}}{%- endif -%}{%- endmacro -%}"
)


def single_token(word: str, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id of a word that is one known token, as it is or after a blank; None if it is not."""
    for text in (word, f" {word}"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) == 1 and ids[0] != getattr(tokenizer, "unk_token_id", None):
            return int(ids[0])
    return None


class Encoder:
    """Turns prompts into token ids for one tokenizer.

    Args:
        tokenizer: a Hugging Face tokenizer; None allows prompts given as token ids only.
        causal: pad on the left (decoders) or on the right (encoders).
        date: ISO day for templates that print one.
        double_bos: render the template as text and tokenise it with special tokens again, as EmotionCircuits did
            (preset ``emotion_circuits``); a template that starts with BOS then yields two.
        bos: True begins every prompt with one BOS, False with none, None as tokenizer and template have it. Prompts given
            as token ids stay as they are.
        max_length: longest sequence the model takes, or None.
        vocab_size: number of token ids the model knows, or None.

    Raises:
        EmotraceError: for a date that is not ISO, or a ``bos`` that the tokenizer or ``double_bos`` does not allow.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        causal: bool = True,
        date: str = DATE,
        double_bos: bool = False,
        bos: bool | None = None,
        max_length: int | None = None,
        vocab_size: int | None = None,
    ) -> None:
        try:
            self.date = datetime.date.fromisoformat(date)
        except ValueError:
            raise EmotraceError(f"date={date!r} is not an ISO day such as {DATE!r}.") from None
        self.tokenizer: Any = tokenizer
        self.causal, self.double_bos, self.max_length = causal, double_bos, max_length
        self.vocab_size = vocab_size
        check_switch(bos, double_bos)
        self.specials, self.bos = Specials.of(tokenizer, causal), bos
        self.specials.check(bos)
        self._told: set[str] = set()
        self._holding: dict[tuple[tuple[str, ...], int], frozenset[int]] = {}
        self._hashed: tuple[int, str | None] = (-1, None)
        self.has_template = bool(getattr(tokenizer, "chat_template", None))
        self.system_role = self._system_role() if self.has_template else "plain text"
        pad = getattr(tokenizer, "pad_token_id", None)
        eos = getattr(tokenizer, "eos_token_id", None)
        self.pad_id = int(pad if pad is not None else eos if eos is not None else 0)
        self.begins_with_bos = self._begins()
        self.notices = self.specials.notices(bos, *self.begins_with_bos.values())

    # -- text ---------------------------------------------------------------------------------------------------

    def render(self, prompt: Prompt) -> str:
        """The text that will be tokenised: the chat template with its generation prompt, or the text itself.

        Without a template, messages become ``system``, ``user`` … contents joined by blank lines, then ``Reply:``.
        """
        if prompt.text is not None:
            return prompt.text
        messages = [dict(m) for m in prompt.messages or ()]
        if not self.has_template:
            return "\n\n".join([m["content"] for m in messages] + ["Reply:"])
        if self.system_role == "folded":
            messages = _fold_system(messages)
        try:
            return self._apply(messages)
        except Exception as error:  # jinja errors of any class: the template's own words are the message
            raise EmotraceError(f"the chat template refuses prompt {prompt.key!r}: {error}") from error

    def _apply(self, messages: list[dict[str, str]]) -> str:
        template = getattr(self.tokenizer, "chat_template", None)
        pinned = {}
        if isinstance(template, str) and "strftime_now" in template:
            forms = {form for _, form in _CLOCK.findall(template)}
            pinned = {"chat_template": _PINNED + template, "pinned_dates": {f: self.date.strftime(f) for f in forms}}
        text = self.tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=True,
            date_string=self.date.strftime("%d %b %Y"),
            enable_thinking=False,
            thinking=False,
            **pinned,
        )
        opened = text.rstrip()
        return f"{opened}\n\n</think>\n\n" if opened.endswith("<think>") else text  # templates that cannot be told

    def _system_role(self) -> str:
        """``native`` if the template shows a system message, ``folded`` if it refuses or drops one."""
        user = {"role": "user", "content": "user"}
        try:
            shown = _PROBE in self._apply([{"role": "system", "content": _PROBE}, user])
        except Exception:  # e.g. jinja2.TemplateError("System role not supported")
            shown = False
        return "native" if shown else "folded"

    def _begins(self) -> dict[str, bool]:
        """Whether plain texts and chats begin with BOS."""
        if self.specials.bos is None:
            return {"text": False, "chat": False}
        text = chat = self._coded(["a"], True)[0][:1] == [self.specials.bos]
        if self.has_template:
            try:
                shown = self._apply([{"role": "user", "content": "user"}])
                chat = self._coded([shown], self.double_bos)[0][:1] == [self.specials.bos]
            except Exception:  # a template that refuses this chat: jinja errors of any class
                chat = bool(self.bos)
        return {"text": text, "chat": chat}

    # -- ids ----------------------------------------------------------------------------------------------------

    def ids(self, prompts: PromptsLike) -> list[list[int]]:
        """Token ids of every prompt (without replies), one BOS each.

        Raises:
            EmotraceError: without a tokenizer, for an empty prompt, one longer than the model takes, or unknown ids.
        """
        prompts = Prompts.of(prompts)
        texts = {i: self.render(p) for i, p in enumerate(prompts) if p.token_ids is None and self._need_tokenizer(p)}
        out: list[list[int]] = [list(p.token_ids or ()) for p in prompts]
        for special in (True, False):
            chosen = [i for i in texts if self._adds_specials(prompts[i]) is special]
            if chosen:
                self._tell([prompts[i] for i in chosen])
                for i, ids in zip(chosen, self._coded([texts[i] for i in chosen], special), strict=True):
                    out[i] = ids
        for prompt, ids in zip(prompts, out, strict=True):
            if not ids:
                raise EmotraceError(f"prompt {prompt.key!r} has no tokens.")
            top = max((*ids, *(prompt.reply_ids or ())))
            if self.vocab_size is not None and top >= self.vocab_size:
                raise EmotraceError(
                    f"prompt {prompt.key!r} has the token id {top}; the model knows 0 to {self.vocab_size - 1}."
                )
            longest = len(ids) + len(prompt.reply_ids or ())
            if self.max_length is not None and longest > self.max_length:
                raise EmotraceError(
                    f"prompt {prompt.key!r} has {longest} tokens; the model takes at most {self.max_length}."
                )
        return out

    def _need_tokenizer(self, prompt: Prompt) -> bool:
        if self.tokenizer is None:
            raise EmotraceError(f"prompt {prompt.key!r} is text, but this model has no tokenizer: pass tokenizer=.")
        return True

    def _adds_specials(self, prompt: Prompt) -> bool:
        return prompt.text is not None or not self.has_template or self.double_bos

    def continued(self, prompt: Prompt, continuation: str) -> list[int]:
        """Token ids of a prompt whose text goes on: both tokenised together, as running text is."""
        self._need_tokenizer(prompt)
        return self._coded([self.render(prompt) + continuation], self._adds_specials(prompt))[0]

    def _coded(self, texts: list[str], special: bool) -> list[list[int]]:
        """Ids of rendered texts: one BOS or none, no EOS that the tokenizer appends to what is to go on."""
        coded = [list(ids) for ids in self.tokenizer(texts, add_special_tokens=special)["input_ids"]]
        return coded if self.double_bos else [self._trimmed(ids, special) for ids in coded]

    def _trimmed(self, ids: list[int], special: bool) -> list[int]:
        return self._opened(ids[:-1] if special and self.specials.closes else ids)

    def _opened(self, ids: list[int]) -> list[int]:
        bos = self.specials.bos
        while bos is not None and len(ids) > 1 and ids[0] == ids[1] == bos:
            ids = ids[1:]
        if bos is None or self.bos is None or self.bos == (ids[:1] == [bos]):
            return ids
        return [bos, *ids] if self.bos else ids[1:]

    @property
    def opening(self) -> list[int]:
        """Ids before a plain text."""
        return self._opened(list(self.specials.before))

    def _tell(self, prompts: Sequence[Prompt]) -> None:
        """Warn once of each kind of prompt that is encoded otherwise than the other kind."""
        begins = self.begins_with_bos
        kinds = {"text" if p.text is not None else "chat" for p in prompts} - self._told
        self._told |= kinds
        for kind in sorted(kinds):
            meant = kind == "text" and self.specials.declared is False
            if self.bos is None and not begins[kind] and any(begins.values()) and not meant:
                one, other = ("plain texts", "chats") if kind == "text" else ("chats", "plain texts")
                warnings.warn(
                    f"{one} are encoded without the BOS token {self.specials.text('bos')!r} that {other} begin with: "
                    "load(bos=True) or --bos adds it, bos=False or --no-bos takes it away.",
                    stacklevel=4,
                )
            if kind == "chat" and not self.has_template:
                warnings.warn(
                    "the tokenizer has no chat template: messages are joined as plain text that ends in 'Reply:'.",
                    stacklevel=4,
                )

    def batch(self, sequences: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        """Ids and mask ``[batch, token]``: padded on the left for decoders, on the right for encoders."""
        longest = max(len(s) for s in sequences)
        ids = torch.full((len(sequences), longest), self.pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            span = slice(longest - len(sequence), longest) if self.causal else slice(0, len(sequence))
            ids[row, span] = torch.as_tensor(list(sequence), dtype=torch.long)
            mask[row, span] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def __call__(self, prompts: PromptsLike) -> dict[str, torch.Tensor]:
        """Ids and mask of prompts, replies included where they carry one: what `capture` runs on."""
        prompts = Prompts.of(prompts)
        return self.batch([i + list(p.reply_ids or ()) for i, p in zip(self.ids(prompts), prompts, strict=True)])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of reply ids without special tokens, stripped."""
        return self.decode_all(ids).strip()

    def decode_all(self, ids: Sequence[int]) -> str:
        """`decode` with the blanks around it."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def holding(self, texts: Sequence[str]) -> frozenset[int]:
        """The tokens whose text holds one of some texts."""
        size = len(self.tokenizer) if texts else 0
        name = (tuple(texts), size)
        if name not in self._holding:
            found = (i for i in range(size) if any(text in self.decode_all([i]) for text in texts))
            self._holding[name] = frozenset(found)
        return self._holding[name]

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """Text of each token on its own."""
        if self.tokenizer is None:
            return [str(i) for i in ids]
        return [self.tokenizer.decode([int(i)]) for i in ids]

    @property
    def tokenizer_hash(self) -> str | None:
        """Of the tokenizer, taken again where its vocabulary has grown."""
        if self.tokenizer is None:
            return None
        size = len(self.tokenizer)
        if self._hashed[0] != size:
            self._hashed = (size, tokenizer_hash(self.tokenizer))
        return self._hashed[1]

    @property
    def record(self) -> dict[str, Any]:
        """What a manifest says of the tokenizer and template: hashes, date, how the system message is passed."""
        template = getattr(self.tokenizer, "chat_template", None)
        return {
            "tokenizer_hash": self.tokenizer_hash,
            "template_hash": _digest(template) if template else "plain",
            "template_date": self.date.isoformat(),
            "system_role": self.system_role,
            "double_bos": self.double_bos,
            "bos": self.bos,
            "begins_with_bos": self.begins_with_bos,
            "left_out": self.specials.text("eos") if self.specials.closes and not self.double_bos else None,
        }


def _fold_system(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    system = [m["content"] for m in messages if m["role"] == "system"]
    rest = [m for m in messages if m["role"] != "system"]
    if system and rest:
        rest[0] = {**rest[0], "content": "\n\n".join([*system, rest[0]["content"]])}
    return rest or [{"role": "user", "content": "\n\n".join(system)}]


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of what a tokenizer does: its vocabulary and rules, not the padding of its last call."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _digest(tokenizer.get_vocab())
    content = json.loads(backend.to_str())  # padding and truncation are state of the last call, not of the tokenizer
    return _digest({k: v for k, v in content.items() if k not in ("padding", "truncation")})


def _digest(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
