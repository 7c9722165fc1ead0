"""The hand-labelled sentences in data/claims: enough of them, in the vocabulary, varied, clean.

What a parser makes of them is not tested here."""
import json, re
from collections import Counter
from pathlib import Path
import pytest
from vap_diffusion.phantoms import ATTRIBUTES, MODALITIES, TOGETHER

FOLDER = Path(__file__).parents[1]/'data'/'claims'
STYLES = {'prose', 'long', 'caption', 'report', 'list', 'bullets', 'template'}
TAGS = STYLES | {'negation', 'hedge', 'range', 'synonym', 'distractor', 'ambiguous', 'typo', 'British', 'American', 'no claim'}
# tags that only some modalities can have
OWN = {'dermoscopy': {'several colours'}, 'chest_xray': {'image side'}, 'colonoscopy': {'several colours'}}

def read(modality):
    return [json.loads(line) for line in (FOLDER/f'{modality}.jsonl').read_text(encoding='utf-8').splitlines()]

def test_one_file_a_modality(): assert sorted(p.stem for p in FOLDER.glob('*.jsonl')) == sorted(MODALITIES)

def plain(text): return re.sub(r'\W+', ' ', text.lower()).strip()

def test_no_sentence_twice():
    texts = Counter(plain(r['text']) for m in MODALITIES for r in read(m) if r['claims'])
    assert [t for t, n in texts.items() if n > 1] == []

def test_no_sentence_was_developed_with():
    "Up to case and punctuation."
    lines = (Path(__file__).parent/'claims_development.jsonl').read_text(encoding='utf-8').splitlines()
    developed = {plain(json.loads(line)['text']) for line in lines if line.strip()}
    assert developed & {plain(r['text']) for m in MODALITIES for r in read(m)} == set()

@pytest.mark.parametrize('modality', MODALITIES)
def test_enough_sentences(modality):
    rows = read(modality)
    assert len({r['text'].lower() for r in rows}) == len(rows) >= 200
    assert all(r.keys() == {'text', 'claims', 'tags'} for r in rows)

@pytest.mark.parametrize('modality', MODALITIES)
def test_claims_are_in_the_vocabulary(modality):
    known, together = ATTRIBUTES[modality], TOGETHER[modality]
    for r in read(modality):
        for attribute, values in r['claims'].items():
            assert attribute in known and values and values == sorted(set(values)) and set(values) <= set(known[attribute]), r
            assert 'none' not in values or values == ['none'] and attribute not in together[1:], r
        if together and r['claims'].get(together[0]) == ['none']: assert not r['claims'].keys() & set(together[1:]), r

@pytest.mark.parametrize('modality', MODALITIES)
def test_every_value_and_tag_occurs(modality):
    rows, together = read(modality), TOGETHER[modality]
    seen = Counter((a, v) for r in rows for a, values in r['claims'].items() for v in values)
    few = {(a, v) for a, values in ATTRIBUTES[modality].items() for v in values
           if seen[a, v] < 4 and not (v == 'none' and a in together[1:])}
    assert few == set()
    tags = Counter(t for r in rows for t in r['tags'])
    assert tags.keys() == TAGS | OWN[modality] and min(tags.values()) >= 2, tags

@pytest.mark.parametrize('modality', MODALITIES)
def test_tags_fit_the_line(modality):
    for r in read(modality):
        tags = set(r['tags'])
        assert r['tags'] == sorted(tags) and len(tags & STYLES) == 1, r
        assert ('no claim' in tags) == (not r['claims']), r
        assert 'range' in tags or 'size' not in r['claims'], r
        assert 'several colours' in tags or len(r['claims'].get('colour', [])) < 2, r

@pytest.mark.parametrize('modality', MODALITIES)
def test_texts_are_clean_and_name_nobody(modality):
    for r in read(modality):
        text = r['text']
        assert text == ' '.join(text.split()) and text.isascii() and text.isprintable() and 5 <= len(text) <= 700, r
        assert not re.search(r'\b(1[89]|20)\d\d\b|\d{5}|\d[/.-]\d+[/.-]\d|@|https?:|'
                             r'\b(Mr|Mrs|Ms|Dr|Prof)\b\.?|\b(born|MRN|named|file_name)\b', text), r
