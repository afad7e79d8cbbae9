"""Files to contigs, fragments, ORFs, tokens, windows and batches."""
