"""Specials: the tokens that a tokenizer puts around a text of its own accord, and what is to be said of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers.models.auto.tokenization_auto import get_tokenizer_config

from emotrace.labels import EmotraceError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "a"


def check_switch(bos: bool | None, double_bos: bool) -> None:
    """Refuse what no tokenizer can do.

    Raises:
        EmotraceError: for a ``bos`` that is none of its values, or one together with ``double_bos``.
    """
    if bos is not None and not isinstance(bos, bool):
        raise EmotraceError(f"load(bos={bos!r}): choices are True, False and None (as the tokenizer does).")
    if bos is not None and double_bos:
        raise EmotraceError(
            f"load(bos={bos}, double_bos=True) contradict each other: double_bos keeps every BOS that template and tokenizer "
            "put, as published. Leave one of them out."
        )


@dataclass(frozen=True)
class Specials:
    """What a tokenizer adds to plain text.

    Args:
        tokenizer: a Hugging Face tokenizer, or None.
        causal: decoders open with BOS and are continued; encoders may open with CLS and close with SEP.
        before: ids before a text.
        after: ids after it.
    """

    tokenizer: Any
    causal: bool
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase | None, causal: bool) -> Specials:
        """Found by encoding a text with and without them, so that what files say does not count."""
        if tokenizer is None:
            return cls(None, causal)
        bare = list(tokenizer(_PROBE, add_special_tokens=False)["input_ids"])
        full = list(tokenizer(_PROBE)["input_ids"])
        spare = len(full) - len(bare)
        at = next((i for i in range(spare + 1) if full[i : i + len(bare)] == bare), max(spare, 0))
        return cls(tokenizer, causal, tuple(full[:at]), tuple(full[at + len(bare) :]))

    def id(self, name: str) -> int | None:
        """Id of the ``bos``, ``eos``, ``cls`` or ``sep`` token, where there is one."""
        return getattr(self.tokenizer, f"{name}_token_id", None)

    def text(self, name: str) -> str:
        """The token itself."""
        return str(getattr(self.tokenizer, f"{name}_token", None))

    @property
    def bos(self) -> int | None:
        """The BOS token that prompts may begin with: none where an encoder begins with CLS."""
        return None if not self.causal and self.id("cls") is not None else self.id("bos")

    @property
    def closes(self) -> bool:
        """Whether a decoder's tokenizer ends every text, to which a reply is yet to come."""
        return self.causal and self.id("eos") is not None and self.after[-1:] == (self.id("eos"),)

    def check(self, bos: bool | None) -> None:
        """Refuse a switch that this tokenizer does not have.

        Raises:
            EmotraceError: for a tokenizer without BOS, or a masked model that begins with CLS.
        """
        if bos is not None and self.bos is None and self.id("bos") is not None:
            raise EmotraceError(
                f"load(bos={bos}): this masked model begins with its CLS token {self.text('cls')!r}; leave bos out."
            )
        if bos and self.bos is None:
            why = "the tokenizer has no BOS token" if self.tokenizer is not None else "there is no tokenizer"
            raise EmotraceError(f"load(bos=True): {why}; leave bos out.")

    def notices(self, bos: bool | None, text: bool, chat: bool) -> list[str]:
        """What is to be said when a model is loaded, given whether plain texts and chats begin with BOS."""
        out = []
        adds = self.bos is not None and self.bos in self.before
        declared = self.declared
        if bos is None and self.bos is not None and not text and not chat and declared is not False:
            out.append(
                f"the tokenizer has the BOS token {self.text('bos')!r} and puts it before no prompt. A model that was "
                "trained with it computes something else without it: load(bos=True) or --bos adds it, bos=False or "
                "--no-bos says that it is meant so."
            )
        elif bos is None and declared is not None and declared != adds:
            out.append(
                f"the tokenizer's file says add_bos_token={declared}, but the tokenizer puts the BOS token "
                f"{self.text('bos')!r} before {'every text' if adds else 'no text'}: load(bos={declared}) does as it says."
            )
        for name, there in (("cls", self.before), ("sep", self.after)):
            token = self.id(name)
            if not self.causal and token is not None and token not in there:
                where = "before" if name == "cls" else "after"
                out.append(
                    f"the tokenizer has the {name.upper()} token {self.text(name)!r} and puts it {where} no text."
                )
        if self.closes:
            out.append(
                f"the tokenizer ends every text with its EOS token {self.text('eos')!r}; prompts are encoded without it, "
                "since a reply is to follow."
            )
        return out

    @property
    def declared(self) -> bool | None:
        """Whether the tokenizer's file says that BOS begins a text: a GGUF file, which is heeded, or
        ``tokenizer_config.json``, which transformers does not heed where there is a tokenizer.json."""
        if self.bos is None:
            return None
        name = str(getattr(self.tokenizer, "name_or_path", "") or "")
        found = getattr(self.tokenizer, "init_kwargs", {}).get("add_bos_token")
        if found is None and name:
            found = get_tokenizer_config(name, local_files_only=True).get("add_bos_token")
        return found if isinstance(found, bool) else None
