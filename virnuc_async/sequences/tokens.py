"""ORFs as token ids: bases by DNABERT-S's byte-pair encoding, residues by ESM-2's alphabet."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

# Letter i has token id i: fair-esm's ``Alphabet.from_architecture("ESM-1b")``, which ESM-2 uses.
ESM2_ALPHABET = (
    *("<cls>", "<pad>", "<eos>", "<unk>"),
    *"LAGVSERTIDPKQNFYMHWCXBUZO.-",
    *("<null_1>", "<mask>"),
)
CLS, EOS, UNKNOWN = (ESM2_ALPHABET.index(name) for name in ("<cls>", "<eos>", "<unk>"))


@dataclass(frozen=True, slots=True)
class Ragged:
    """Sequences of token ids, one after the other, with nothing between them."""

    ids: NDArray[np.int32]  # (tokens,)
    lengths: NDArray[np.int64]  # (sequences,)

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, rows: NDArray[np.int64]) -> "Ragged":
        """Return the sequences *rows*, in that order."""
        lengths = self.lengths[rows]
        starts = (np.cumsum(self.lengths) - self.lengths)[rows]
        # Each output token lies as far behind its sequence's start as it does in the input.
        shift = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
        return Ragged(self.ids[np.arange(len(shift)) + shift], lengths)


class OrfTokenizer:
    """
    Encodes ORFs as token ids; *definition* is the text of a ``tokenizer.json``.

    Safe to use from one thread at a time; the byte-pair encoding itself uses all cores.
    """

    def __init__(self, definition: str) -> None:
        """
        Build the tokenizer.

        Raises:
            ValueError: *definition* is not of a tokenizer that accepts DNA
        """
        try:
            self._bases = Tokenizer.from_str(definition)
            # The published file cuts and pads to 2,000 tokens: that is its training, not the method.
            self._bases.no_truncation()
            self._bases.no_padding()
            self._bases.encode_batch_fast(["ACGTN"])
        except Exception as error:  # the Rust library raises this very type and nothing narrower
            raise ValueError(str(error)) from error

    @property
    def vocabulary(self) -> int:
        """The number above every token id that bases may get."""
        return max(self._bases.get_vocab().values(), default=-1) + 1

    def nucleotides(self, bases: Sequence[bytes]) -> Ragged:
        """Return the token ids of upper-case *bases*, each between [CLS] and [SEP]."""
        encodings = self._bases.encode_batch_fast([text.decode("ascii") for text in bases])
        lengths = np.fromiter(map(len, encodings), np.int64, len(encodings))
        ids = chain.from_iterable(encoding.ids for encoding in encodings)
        return Ragged(np.fromiter(ids, np.int32, lengths.sum()), lengths)

    def residues(self, proteins: Sequence[bytes]) -> Ragged:
        """Return the token ids of *proteins*, each between <cls> and <eos>."""
        # A letter before each and one after it reserve the positions of <cls> and <eos>.
        text = b"--".join([b"", *proteins, b""])[1:-1]
        ids = np.frombuffer(text.translate(_RESIDUE_IDS), dtype=np.uint8).astype(np.int32)
        lengths = np.fromiter(map(len, proteins), np.int64, len(proteins)) + 2
        ends = np.cumsum(lengths)
        ids[ends - lengths], ids[ends - 1] = CLS, EOS
        return Ragged(ids, lengths)


def _residue_ids() -> bytes:
    ids = bytearray([UNKNOWN] * 256)
    for number, letter in enumerate(ESM2_ALPHABET):
        if len(letter) == 1:
            ids[ord(letter)] = number
    return bytes(ids)


_RESIDUE_IDS = _residue_ids()
