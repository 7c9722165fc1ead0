"""The README says what the results say, and its links lead somewhere."""
import re
import readme

TEXT = (readme.ROOT/'README.md').read_text()

def test_tables_are_drawn_from_results(): assert readme.drawn(TEXT) == TEXT, 'run `make readme`'

def test_links_and_pictures_exist():
    for target in re.findall(r'\]\((?!http|#)([^)\s]+)\)|src="(?!http)([^"]+)"', TEXT):
        assert (readme.ROOT/(target[0] or target[1])).exists(), target

def test_every_chapter_is_in_the_table():
    for p in (readme.ROOT/'nbs').glob('[0-9]*.ipynb'): assert f'nbs/{p.name}' in TEXT, p.name
