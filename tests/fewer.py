"""A working folder with fewer training images, to see what their number is worth: `python tests/fewer.py W OUT 1289`.

Whole groups (lesions, patients) are drawn at random until there are as many images; validation and test stay as they
are. Descriptions are copied, features encoded with the autoencoder and text encoder of W. Then
`python tests/claim.py OUT ...` as ever."""
import argparse
from pathlib import Path
import numpy as np
from vap_diffusion.datasets import fingerprint, load_table, read_json, write_table
from vap_diffusion.training import encode

def main(argv=None):
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('work', type=Path)
    ap.add_argument('out', type=Path)
    ap.add_argument('n', type=int)
    ap.add_argument('--seed', type=int, default=0)
    a = ap.parse_args(argv)
    table, record = load_table(a.work), read_json(a.work/'features'/'features.json')
    train = table[table.split == 'train']
    sizes = train.groupby('group').size()
    drawn = sizes.iloc[np.random.default_rng(a.seed).permutation(len(sizes))].cumsum()
    kept = table[(table.split != 'train') | table.group.isin(drawn.index[drawn <= a.n])].reset_index(drop=True)
    if lost := sorted(set(train.label) - set(kept.label[kept.split == 'train'])):
        raise SystemExit(f'no training image of {lost[0]} would be left: give a larger n, or another --seed')
    a.out.mkdir(parents=True)
    kept.attrs = table.attrs | dict(source=fingerprint(kept, table.attrs['root']))
    write_table(kept, a.out)
    (a.out/'descriptions.jsonl').write_bytes((a.work/'descriptions.jsonl').read_bytes())
    encode(a.out, record['autoencoder'], record['text_encoder'], record['size'], flips=record['flips'])
    print(kept.split.value_counts().to_dict(), kept[kept.split == 'train'].label.value_counts().to_dict())

if __name__ == '__main__': main()
