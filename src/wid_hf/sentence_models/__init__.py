"""Sentence-transformers folders: what stands behind the transformer, read for a teacher and written for its student."""

from __future__ import annotations

from .pipeline import SentencePipeline
from .read import has_pooling, pipeline_of, read_pipeline
from .save import save_sentence_modules

__all__ = ["SentencePipeline", "has_pooling", "pipeline_of", "read_pipeline", "save_sentence_modules"]
