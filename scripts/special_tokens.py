"""The special tokens of the tokenizers made by these scripts: those of DNABERT-S, with their ids."""

from tokenizers import Tokenizer, processors

SPECIAL = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")  # ids 0 to 4
UNKNOWN = SPECIAL[0]


def finish_tokenizer(tokenizer: Tokenizer) -> str:
    """Make *tokenizer* put [CLS] and [SEP] around each sequence; return its ``tokenizer.json``."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, SPECIAL.index(name)) for name in ("[CLS]", "[SEP]")],
    )
    return tokenizer.to_str(pretty=True)
