"""One look for every progress bar."""

from functools import partial

from tqdm.auto import tqdm

progress_bar = partial(tqdm, disable=None, delay=1.0, leave=False, dynamic_ncols=True)
"""tqdm, silent where the output is no terminal and for what ends within a second."""
