"""From a bundle and a budget to answers. It sees a model only through `backends.Backend`.

runtime.py      `load`: plans, opens a backend, and gives a `Runtime` (loaded.py, loaded_model.py)
planning.py     the budget divided; plan*.py are its parts, measured.py and measure*.py the peaks
documents.py    texts in pieces, tokens.py and byte_tokens.py their tokens
reading.py      chunks through the backend; reader.py and checkpoint.py for interruptions
asking.py       an answer, token by token; sampling.py chooses; speculative.py and drafting.py draft
memory.py       what reading leaves behind, and span_file.py its file
verify.py, doctor.py, demo.py, against.py: one command each
"""
