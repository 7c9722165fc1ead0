"""The README and the page of results say what the results say, and their links lead somewhere."""
import re
import pytest, readme

pages = pytest.mark.parametrize('page', readme.PAGES, ids=lambda p: str(p.relative_to(readme.ROOT)))

@pages
def test_tables_are_drawn_from_results(page): assert readme.drawn(page.read_text()) == page.read_text(), 'run `make readme`'

def headings(page):
    return {re.sub(r'[^\w -]', '', h.lower()).replace(' ', '-') for h in re.findall(r'^#+ (.*)$', page.read_text(), re.M)}

@pages
def test_links_lead_to_a_file_and_a_heading(page):
    for target, heading in re.findall(r'\]\((?!http)([^)\s#]*)#?([^)\s]*)\)', page.read_text()):
        assert (page.parent/target).exists(), target
        assert not heading or heading in headings(page.parent/target if target else page), heading

def test_every_table_stands_on_a_page():
    texts = ''.join(p.read_text() for p in readme.PAGES)
    for p in (readme.ROOT/'results').glob('claim-*.json'): assert f"results: {p.stem.replace('-', '_')} -->" in texts, p.name

def test_every_chapter_is_in_the_table():
    for p in (readme.ROOT/'nbs').glob('[0-9]*.ipynb'): assert f'nbs/{p.name}' in readme.PAGES[0].read_text(), p.name

def test_results_name_no_path_of_one_machine():
    for p in (readme.ROOT/'results').glob('*.json'):
        found = re.search(r'(?<![\w.])/(tmp|home|root|work|Users)/[^\s"]*', p.read_text())
        assert not found, f'{p.name}: {found[0]}: give paths below the working folder, such as runs/NAME'
