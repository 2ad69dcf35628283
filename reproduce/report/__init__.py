"""A verdict and what it rests on in, pages out that need nothing else: the report, the index of all rows, a badge."""
