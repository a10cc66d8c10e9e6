"""The command line: each command parses its options, calls one function of `wid_hf.tools`, and prints.

It is a separate package because any import of `wid_hf` registers the method with PEFT, which loads torch and takes
seconds. Here `wid_hf` is imported only when a command runs, so that `--help` and shell completion answer at once.
Therefore values that options need before (legal words, defaults, names of tasks) are repeated here, and
tests/wid_hf_cli compares them with the library.
"""
