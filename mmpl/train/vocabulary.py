"""The embedded bundle's own tokenizer: a Unigram vocabulary of the captions' words."""

from __future__ import annotations

import math
import string
from collections import Counter

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from mmpl.train.clips import caption, draw_spec
from mmpl.wan.tokenizer import EOS, PAD

_SPACE = "▁"
_RARE = -20.0  # log-probability of a single character: for words that no caption has


def make_tokenizer(captions: int) -> str:
    """The JSON of a Unigram tokenizer with umT5's special tokens: one piece per word of the
    captions of `captions` drawn clips, as probable as it is frequent, and single characters."""
    words = Counter(word for i in range(captions) for word in caption(draw_spec(i), i).split())
    total = sum(words.values())
    pieces = [(piece, 0.0) for piece in (PAD, EOS, "<s>", "<unk>")]
    pieces += [(_SPACE + word, math.log(count / total)) for word, count in words.most_common()]
    pieces += [(character, _RARE) for character in _SPACE + string.ascii_lowercase + string.digits]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer.to_str()
