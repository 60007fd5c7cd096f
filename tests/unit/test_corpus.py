from model_export.corpus import digest, is_held_out, join, load_corpus


def test_the_split_is_by_file_disjoint_and_complete():
    corpus = load_corpus()
    training, held_out = ({file.path for file in part} for part in (corpus.training, corpus.held_out))
    assert not training & held_out
    assert all(is_held_out(path) for path in held_out)
    assert 0.02 < len(join(corpus.held_out)) / len(join(corpus.training)) < 0.15


def test_tests_are_left_out():
    corpus = load_corpus()
    assert not any("/test/" in f"/{file.path}" for file in corpus.training + corpus.held_out)


def test_the_digest_notices_a_changed_byte():
    files = load_corpus().held_out[:3]
    changed = (files[0]._replace(data=files[0].data + b"x"), *files[1:])
    assert digest(files) != digest(changed)
