import agreement

from hone.models import known_families


def test_the_page_says_what_the_code_says():
    page = agreement.PAGE.read_text(encoding="utf-8")
    measured = agreement.rows_in(page)
    assert page == agreement.make_page(measured), "run `make docs`"
    assert measured.keys() == set(known_families()) - {"hone"}


def test_agreement_was_measured_for_every_family_and_is_what_was_promised():
    for family, (cases, *errors) in agreement.rows_in(agreement.PAGE.read_text()).items():
        assert int(cases) > 0, family
        outputs, loss, gradients = (float(error) for error in errors)
        limit = 1e-3 if family.startswith("mamba") else 1e-4
        assert outputs <= limit, family
        assert loss <= limit, family
        assert gradients <= 1e-3, family
