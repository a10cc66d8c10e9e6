"""The command line: each command parses its options, calls one function of `wid_hf.tools`, and prints.

It is a second package beside `wid_hf` because `import wid_hf` makes PEFT know the method, which loads torch and
takes seconds, and so does the import of anything inside it. Here `wid_hf` is imported only where a command runs, so
that `--help` and the completion of a shell answer at once. What options need to know of the library before (words,
defaults, names of tasks) is therefore stated here, and tests/wid_hf_cli compares it with the library.
"""
