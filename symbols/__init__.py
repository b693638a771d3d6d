"""ELF and DWARF: from an executable and a profile to a ProbePlan. Knows nothing of BPF or rules."""
