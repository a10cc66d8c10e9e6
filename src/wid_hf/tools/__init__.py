"""The tools behind the extras: compress, evaluation, reports, pictures, ONNX."""
