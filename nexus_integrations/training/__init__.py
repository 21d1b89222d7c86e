"""Fine-tuning. `finetune.py` is the entry, and `config.py` its settings.

`prepare.py` makes an objective of datasets: what is minimised, and what is scored on dev.
`loop.py` trains linear heads for its epochs; `growing.py` and `perforated.py` grow dendrites.
`averaging.py` runs either once per seed. `result.py` holds what comes out, as numbers.
"""
