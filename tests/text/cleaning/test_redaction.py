"""What looks like an address or a number of a person is replaced; dates, ISBNs and other numbers stay."""

import time

import pytest

from bert_jax.config.cleaning import REDACTED
from bert_jax.text.cleaning.redaction import has_valid_check_digit, redact

EMAILS = [
    'jane@example.com',
    'jane.doe+news@mail.example.co.uk',
    'j_d%x@sub-domain.example.org',
    'JANE.DOE@EXAMPLE.COM',
    'müller@bücher.example',
    '1234567890@example.com',
]
CARDS = [  # test numbers that the issuers publish
    '4111111111111111',
    '4111 1111 1111 1111',
    '4111-1111-1111-1111',
    '4222222222222',
    '5555555555554444',
    '2223003122003222',
    '378282246310005',
    '3782 822463 10005',
    '6011111111111117',
    '3056 930902 5904',
    '30569309025904',
    '3530111333300000',
]
PHONES = [
    '+1 555 123 4567',
    '+1 (555) 123-4567',
    '+1-555-123-4567',
    '+15551234567',
    '(555) 123-4567',
    '555-123-4567',
    '555.123.4567',
    '1-800-555-0199',
    '+44 20 7946 0958',
    '+44 (0)20 7946 0958',
    '020 7946 0958',
    '+49 30 901820',
    '+49 (0) 30 / 90 18 20',
    '0049 30 9018200',
    '030/9018200',
    '030 9018-2000',
    '(030) 901 8200',
    '0171-1234567',
    '+33 1 23 45 67 89',
    '01 23 45 67 89',
    '06.12.34.56.78',
    '+86 138 1234 5678',
    '+91-98765-43210',
]
OTHERS = [
    '2023-01-15',
    '15.01.2023',
    '01/02/2023 09:30',
    '01.02.2023 - 05.03.2023',
    '05-06-2021-001',
    '1939–1945',
    'from 1,000,000 to 2,500,000 people',
    '10 000 000 units',
    '3.14159265358979',
    '0.123456789',
    'ISBN 978-0-306-40615-7',
    'ISBN-13: 9780306406157',
    'ISBN 0-306-40615-2',
    '0-306-40615-2',
    'ISSN 0317-8471',
    '4111111111111112',  # no valid check digit
    '1234567812345670',  # a valid check digit, but no issuer
    '9999999999999995',
    '14.111111111111111111',
    '192.168.100.200',
    '12:30:45.678',
    '$100 200 300',
    'IBAN DE89 3704 0044 0532 0130 00',
    'a score of 0-0, then 1-0',
    'section 1.2.3.4.5',
    '@jane_doe wrote',
    'icon@2x.png',
    'user@localhost',
    'a @ b . com',
    'x = y @ z.T',
    '49°30′09″',
    '2001 2002 2003 2004 2005 2006',
]


def redacted(text: str, names: tuple[str, ...] = REDACTED) -> tuple[str, list[tuple[str, str]]]:
    found: list[tuple[str, str]] = []
    return redact(text, names, lambda reason, what: found.append((reason, what))), found


@pytest.mark.parametrize(
    ('text', 'placeholder', 'reason'),
    [
        *((text, '<EMAIL>', 'email_replaced') for text in EMAILS),
        *((text, '<CARD>', 'card_number_replaced') for text in CARDS),
        *((text, '<PHONE>', 'phone_number_replaced') for text in PHONES),
    ],
)
@pytest.mark.parametrize('frame', ['{}', 'Write to {}.', '({}), please', 'either “{}” or\n{}', 'a: {}; {}'])
def test_usual_formats_are_replaced(text: str, placeholder: str, reason: str, frame: str) -> None:
    times = frame.count('{}')
    expected = frame.format(*[placeholder] * times), [(reason, text)] * times
    assert redacted(frame.format(*[text] * times)) == expected


@pytest.mark.parametrize('text', OTHERS)
@pytest.mark.parametrize('frame', ['{}', 'It was {}, they say.', '({})'])
def test_other_numbers_stay(text: str, frame: str) -> None:
    assert redacted(frame.format(text)) == (frame.format(text), [])


def test_number_after_a_label_is_a_phone_number() -> None:
    text = 'Tel. 5551234, phone: 555 123 4567, Fax: 1234567, telephone number 12 34 56 78'
    assert redacted(text)[0] == 'Tel. <PHONE>, phone: <PHONE>, Fax: <PHONE>, telephone number <PHONE>'
    assert redacted('an iPhone 12 and a Handy for 300 euros')[1] == []


def test_card_with_its_date_is_replaced() -> None:
    assert redacted('card 4111 1111 1111 1111 12/26, code 123')[0] == 'card <CARD> 12/26, code 123'


def test_only_what_is_named_is_replaced() -> None:
    text = 'jane@example.com, 4111111111111111, +49 30 901820'
    assert redacted(text, ('email',))[0] == '<EMAIL>, 4111111111111111, +49 30 901820'
    assert redacted(text, ('card',))[0] == 'jane@example.com, <CARD>, +49 30 901820'
    assert redacted(text, ('phone',))[0] == 'jane@example.com, 4111111111111111, <PHONE>'
    assert redacted(text, ()) == (text, [])
    assert redacted(redacted(text)[0]) == (redacted(text)[0], [])


def test_check_digit_finds_every_wrong_digit() -> None:
    number = '4539578763621486'
    assert has_valid_check_digit(number)
    for index in range(len(number)):
        for digit in '0123456789':
            other = number[:index] + digit + number[index + 1 :]
            assert has_valid_check_digit(other) == (other == number)


@pytest.mark.parametrize('unit', ['a', '1', '1 ', '0-', '+1 ', '(0)', 'a.', 'a@', '@a.', 'tel: 1', '1234-'])
def test_time_is_linear_in_the_text(unit: str) -> None:
    def seconds(size: int) -> float:
        text = unit * (size // len(unit)) + '@'
        start = time.process_time()
        redacted(text)
        return time.process_time() - start

    seconds(1000)
    assert seconds(200_000) < 1
