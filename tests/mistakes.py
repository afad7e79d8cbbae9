"""
Mistakes of users: the table that tests/cli/test_mistakes.py tries and docs/explanation/reliability.md shows.

``python tests/mistakes.py`` prints the table of the document.
"""

from typing import NamedTuple

LONG = "n" * 300


class Mistake(NamedTuple):
    """A command in the directory of the test, its exit code, and what its message has to say."""

    what: str
    command: str
    code: int
    says: str


PREDICT = (
    Mistake("a misspelt command", "predikt good.fa out", 64, "Did you mean predict?"),
    Mistake("no command, only files", "good.fa out", 64, "no such command: 'good.fa'"),
    Mistake("no names", "predict", 64, "name an input and an output directory"),
    Mistake("an input without an output directory", "predict good.fa", 64, "name an input before the output"),
    Mistake("a misspelt option", "predict good.fa out --treshold 0.7", 64, "Did you mean --threshold?"),
    Mistake("an option without its value", "predict good.fa out --model", 64, "expected one argument"),
    Mistake("a file as output directory", "predict good.fa notes.txt", 64, "but 'notes.txt' is a file"),
    Mistake("an empty input name", "predict '' out", 64, "an input has an empty name"),
    Mistake("an empty output name", "predict good.fa ''", 64, "the output directory has an empty name"),
    Mistake("an empty `--output-dir=`", "predict good.fa --output-dir=", 64, "it has an empty name"),
    Mistake("an empty `--input-list=`", "predict --input-list= out", 64, "it has an empty name"),
    Mistake("an empty `--model=`", "predict good.fa out --model=", 64, "it has an empty name"),
    Mistake("an empty `--cache-dir=`", "predict good.fa out --cache-dir=", 64, "it has an empty name"),
    Mistake(
        "the home of nobody", "predict good.fa --output-dir=~no-one/out", 64, "the home directory ~no-one"
    ),
    Mistake(
        "a percentage as threshold", "predict good.fa out --threshold 80", 64, "a number from 0 to 1, not 80"
    ),
    Mistake(
        "a word as threshold", "predict good.fa out --threshold half", 64, "a number from 0 to 1, not 'half'"
    ),
    Mistake("NaN as threshold", "predict good.fa out --threshold nan", 64, "a number from 0 to 1, not nan"),
    Mistake(
        "no number of tokens", "predict good.fa out --tokens-per-batch 2k", 64, "a number of tokens, or auto"
    ),
    Mistake("a name as GPU", "predict good.fa out --gpus a100", 64, "expected GPU numbers such as 0,2"),
    Mistake("the same GPU twice", "predict good.fa out --gpus 1,1", 64, "a GPU is listed twice"),
    Mistake(
        "GPUs and devices", "predict good.fa out --gpus 0 --devices cpu", 64, "devices or gpus, not both"
    ),
    Mistake("an unknown kind of device", "predict good.fa out --devices gpu", 1, "no device 'gpu' here"),
    Mistake(
        "a GPU that is not there", "predict good.fa out --devices cuda:99", 1, "no device 'cuda:99' here"
    ),
    Mistake(
        "FP8 on a CPU",
        "predict good.fa out --precision fp8 --devices cpu",
        1,
        "it needs a GPU of capability 8.9 or higher, and cpu:0 is a CPU. Use --precision fp32",
    ),
    Mistake("an unknown precision", "predict good.fa out --precision fp3", 64, "Did you mean fp32?"),
    Mistake("quiet and verbose", "predict good.fa out --quiet --verbose", 64, "not allowed with argument"),
    Mistake(
        "overwrite and repair", "predict good.fa out --overwrite --repair", 64, "not allowed with argument"
    ),
    Mistake("a model not yet downloaded", "predict good.fa out --model virnucpro-500", 1, "models download"),
    Mistake("a misspelt model", "predict good.fa out --model tiny-50", 1, "Did you mean tiny-500?"),
    Mistake("a file as model", "predict good.fa out --model notes.txt", 1, "no model 'notes.txt' here"),
    Mistake("too long a name of a model", f"predict good.fa out --model {LONG}", 1, "no model"),
    Mistake("an output directory below a file", "predict good.fa notes.txt/out", 1, "Not a directory"),
    Mistake(
        "a dangling link as output directory", "predict good.fa dangling", 1, "a link that leads nowhere"
    ),
    Mistake(
        "results of another program there", "predict good.fa taken", 1, "contains 'contigs.tsv' and no run"
    ),
    Mistake("the same with `--overwrite`", "predict good.fa taken --overwrite", 1, "contains 'contigs.tsv'"),
    Mistake("too long a name of the output", f"predict good.fa {LONG}", 1, "File name too long"),
    Mistake("too long a name of an input", f"predict {LONG} out", 1, "File name too long"),
    Mistake("a missing input", "predict missing.fa out", 1, "missing.fa: No such file"),
    Mistake("one missing of two", "predict good.fa missing.fa out", 1, "missing.fa: No such file"),
    Mistake("a text as input", "predict notes.txt out", 1, "line 1: expected '>' (FASTA) or '@' (FASTQ)"),
    Mistake("standard input twice", "predict - - out", 64, "standard input can be read only once"),
    Mistake("a missing list", "predict --input-list missing.txt out", 1, "missing.txt: No such file"),
    Mistake("a directory as list", "predict --input-list taken out", 1, "taken: Is a directory"),
    Mistake("an empty list", "predict --input-list empty.fa out", 64, "the input list 'empty.fa' is empty"),
    Mistake("a list in UTF-16", "predict --input-list utf16.txt out", 1, "iconv -f UTF-16 -t UTF-8"),
    Mistake("sequences as list", "predict --input-list good.fa out", 64, "has sequences, not names of files"),
    Mistake(
        "embeddings that are missing", "predict good.fa out --reuse-features gone", 1, "no features to reuse"
    ),
    Mistake("no embeddings in the directory", "predict good.fa out --reuse-features taken", 1, "no features"),
)
# The work is done, and it is said what is missing.
SURVIVED = (
    Mistake("an empty file alone", "predict empty.fa out --quiet", 0, "no input holds a record"),
    Mistake(
        "the same file twice", "predict good.fa ./good.fa out --quiet", 0, "named more than once, read once"
    ),
    Mistake(
        "a dangling link in a directory", "predict reads out --quiet", 0, "left out 1 link that leads nowhere"
    ),
    Mistake("a text among the inputs", "predict good.fa notes.txt out --quiet", 2, "saw 'Dear reviewer,'"),
    Mistake(
        "a missing one, skipped", "predict good.fa gone.fa out --skip-missing --quiet", 2, "gone.fa: No such"
    ),
    Mistake(
        "a list with a byte order mark", "predict --input-list bom.txt out --quiet", 0, "demonstration model"
    ),
    Mistake("a log of the job there", "predict good.fa logged --quiet", 0, "demonstration model"),
)
LEARN = (
    Mistake("one class only", "train --viral good.fa --output m", 64, "arguments are required: --nonviral"),
    Mistake(
        "the same file in both classes",
        "train --viral good.fa --nonviral good.fa --output m",
        64,
        "both viral",
    ),
    Mistake(
        "labels from standard input",
        "train --viral - --nonviral good.fa --output m",
        64,
        "not standard input",
    ),
    Mistake(
        "a model without a name", "train --viral a --nonviral b --output .", 64, "the name of a new directory"
    ),
    Mistake(
        "a rate of nothing", "train --viral a --nonviral b --output m --rate 0", 64, "finite number above 0"
    ),
    Mistake(
        "an option's old name", "train --viral a --nonviral b --output m --leaks drop", 64, "--leakage now"
    ),
    Mistake(
        "an unknown balance", "train --viral a --nonviral b --output m --balance groups", 64, "mean group?"
    ),
    Mistake(
        "a model where files are", "train --viral good.fa --nonviral other.fa --output taken", 1, "not empty"
    ),
    Mistake("a missing table", "train {} --output m --clusters gone.tsv", 1, "gone.tsv: No such file"),
    Mistake(
        "a text as table", "train {} --output m --clusters notes.txt", 1, "line 1 is not a name, a tab and"
    ),
    Mistake("a table in UTF-16", "evaluate {} --output e --groups utf16.txt", 1, "iconv -f UTF-16 -t UTF-8"),
    Mistake(
        "a table without a record", "evaluate {} --output e --groups groups.tsv", 1, "has no line for other"
    ),
    Mistake("lengths with a semicolon", "evaluate {} --output e --lengths '150;500'", 64, "such as 150,500"),
    Mistake(
        "the same length twice", "evaluate {} --output e --lengths 150,150", 64, "different numbers of bases"
    ),
    Mistake("a file as evaluation", "evaluate {} --output notes.txt", 1, "is a file, not a directory"),
    Mistake(
        "a missing class",
        "evaluate --viral good.fa --nonviral gone.fa --output e",
        1,
        "gone.fa: No such file",
    ),
    Mistake("the shipped model", "calibrate {} --output c", 64, "comes with the program: copy"),
    Mistake("a rate of two", "calibrate {} --output c --fpr 2", 64, "a number between 0 and 1, not 2"),
)
MODELS = (
    Mistake("a misspelt action", "models lst", 64, "Did you mean list?"),
    Mistake("a model that is not there", "models info mine", 1, "no model 'mine' here"),
    Mistake("an empty name", "models info ''", 64, "it has an empty name"),
    Mistake("a directory without a model", "models verify taken", 1, "no model 'taken' here"),
    Mistake("a model cut short", "models info cut-model", 1, "cut-model is not a usable bundle"),
    Mistake(
        "peers in BF16", "models verify tiny-500 --peers --precision bf16", 64, "--peers compares in FP32"
    ),
    Mistake("no model to download", "models download", 64, "name models to download"),
    Mistake("the shipped model to download", "models download tiny-500", 64, "no published model is called"),
    Mistake(
        "two models into one", "models download virnucpro-500 virnucpro-300 --to d", 64, "takes one model"
    ),
    Mistake(
        "a mirror without https", "models download virnucpro-500 --mirror ftp://h", 64, "begins with https://"
    ),
    Mistake("an unknown ESM-2", "models download --protein esm2 --to d", 64, "no ESM-2 is called 'esm2'"),
    Mistake("nothing to import", "models import", 64, "the following arguments are required: --protein"),
    Mistake("a text as checkpoint", "models import {parts} --length 500 --output m", 1, "cannot be imported"),
    Mistake(
        "a length of nothing", "models import {parts} --length 0 --output m", 64, "a number of bases, such as"
    ),
    Mistake(
        "a model where files are", "models import {parts} --length 500 --output taken", 1, "is not empty"
    ),
    Mistake("an option that is not there", "devices --gpus 0", 64, "no such option: --gpus"),
    Mistake("help on nothing", "help predikt", 64, "Did you mean predict?"),
)
# As another user, who has neither an account nor a home, in a directory that only root can write into.
HOMELESS = (
    Mistake("a home without an account", "predict good.fa --output-dir=~/out", 64, "the home directory ~"),
    Mistake("no home for models", "models download virnucpro-500", 1, "or set VIRNUC_ASYNC_CACHE_DIR"),
    Mistake(
        "a model of a home", "predict good.fa out --model virnucpro-500", 1, "or set VIRNUC_ASYNC_CACHE_DIR"
    ),
    Mistake("models of no home", "models list", 0, "or set VIRNUC_ASYNC_CACHE_DIR"),
    Mistake("an output that may not be made", "predict good.fa out --quiet", 1, "out: Permission denied"),
    Mistake(
        "an input that may not be read",
        "predict secret.fa open/out --quiet",
        1,
        "secret.fa: Permission denied",
    ),
    Mistake(
        "the shipped model needs no home", "predict good.fa open/out --quiet", 0, "small demonstration model"
    ),
)
_LABELLED = "--viral good.fa --nonviral other.fa"
_PARTS = "--protein notes.txt --nucleotide taken --classifier notes.txt --name m"


def command(mistake: Mistake) -> str:
    """Return the whole command line of *mistake*."""
    return mistake.command.replace("{}", _LABELLED).replace("{parts}", _PARTS)


def table() -> str:
    """Return the table of the document."""
    lines = ["| mistake | command | exit code | what it says |", "|---|---|---|---|"]
    for mistake in (*PREDICT, *SURVIVED, *LEARN, *MODELS, *HOMELESS):
        shown = mistake.command.replace(LONG, "nnn...").replace(" {}", " ...").replace("{parts}", "...")
        lines.append(f"| {mistake.what} | `{shown}` | {mistake.code} | {mistake.says} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
