"""Set a describer's words against what a person saw in 24 real images of each modality:
`python tests/read_by_eye.py --root ../shared/data`.

results/read_by_eye.json keeps, for each image, its name and what the person accepts for each attribute (what could not
be told is left out). The images stay where they are. This describes them anew with the embedded describer, or another
--mllm, and writes text, failed attributes and verdict; of the embedded one also data/describer_by_eye.json, from which
`--verify` knows what measured evidence may judge.
"""
import argparse, json
from pathlib import Path
from vap_diffusion.datasets import load_image, write_json
from vap_diffusion.faithfulness import ask, errors_by_eye, read_claims
from vap_diffusion.phantoms import ATTRIBUTES, TOGETHER
from vap_diffusion.vaps import make_mllm

RESULTS = Path(__file__).resolve().parent.parent/'results'/'read_by_eye.json'
SHIPPED = RESULTS.parent.parent/'data'/'describer_by_eye.json'

def failed(claims, seen, modality):
    """Attributes in which the words are not what was seen.

    To say nothing of a thing is to say that it is not there; of what is always there, it is no failure."""
    first, *parts = TOGETHER[modality] or [None]
    said = lambda a: claims.get(a, ['none'] if 'none' in ATTRIBUTES[modality][a] else seen[a])
    wrong = [a for a, accepted in seen.items() if not set(said(a)) <= set(accepted)]
    alone = first and (seen.get(first) == ['none'] or said(first) == ['none'])      # a lesion missed or made up is one failure, not four
    return [a for a in wrong if not (alone and a in parts)]

def verdict(wrong, modality):
    """right: nothing to object to. wrong: the lesion or opacity itself (in dermoscopy its colour and something else),
    or more than three attributes. Else partly."""
    main = 'colour' if modality == 'dermoscopy' else TOGETHER[modality][0]
    return ('right' if not wrong else
            'wrong' if len(wrong) > 3 or main in wrong and (modality != 'dermoscopy' or len(wrong) > 1) else 'partly')

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--root', type=Path, required=True, help='folder below which the images lie')
    ap.add_argument('--mllm', default='measure')
    a = ap.parse_args()
    found, mllm = json.loads(RESULTS.read_text()), make_mllm(a.mllm)
    paths = {p.name: p for p in a.root.rglob('*') if p.suffix in ('.jpg', '.png')}
    if missing := [r['image'] for r in found['images'] if r['image'] not in paths]:
        raise SystemExit(f'{len(missing)} images are not below {a.root}, the first is {missing[0]}')
    for r in found['images']:
        r['text'] = ask(mllm, load_image(paths[r['image']], getattr(mllm, 'image_size', None)), r['modality'])
        r['failed'] = failed(read_claims(r['text'], r['modality']), r['seen'], r['modality'])
        r['verdict'] = verdict(r['failed'], r['modality'])
    write_json(RESULTS, found | dict(describer=mllm.name, command='python tests/read_by_eye.py --root DATA'))
    if a.mllm == 'measure': write_json(SHIPPED, dict(describer=mllm.name, wrong=errors_by_eye(found['images'])))
    for m in dict.fromkeys(r['modality'] for r in found['images']):
        print(m, {v: sum(r['verdict'] == v for r in found['images'] if r['modality'] == m)
                  for v in ('right', 'partly', 'wrong')})

if __name__ == '__main__': main()
