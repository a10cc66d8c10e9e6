"""What the extras add: command line, compress, evaluation, reports, pictures, ONNX."""
