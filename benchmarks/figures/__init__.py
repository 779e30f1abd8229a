"""The figures of the documents, made of the result files: a function for each block, by subject."""
