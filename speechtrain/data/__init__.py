"""corpus -> split -> tokenizer -> features -> augment -> batches. Nothing heavy is imported until a module is asked for."""
