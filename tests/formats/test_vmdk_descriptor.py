"""A descriptor says what it says, or is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockstream.errors import VmdkError
from blockstream.formats.vmdk.chain import check_parent
from blockstream.formats.vmdk.descriptor import ExtentLine, ExtentType, parse_descriptor

HEAD = "# Disk DescriptorFile\nversion=1\nCID=0a\nparentCID=ffffffff\n"
FLAT = 'RW 8 VMFS "a-flat.vmdk"\n'


def parsed(text: str, head: str = HEAD) -> object:
    return parse_descriptor((head + text).encode())


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ('RW 8 FLAT "a b.vmdk" 16', ExtentLine(4096, ExtentType.FLAT, "a b.vmdk", 8192)),
        ('RDONLY 8 VMFS "a.vmdk"', ExtentLine(4096, ExtentType.VMFS, "a.vmdk")),
        ('RW 1 SPARSE "x=1.vmdk"', ExtentLine(512, ExtentType.SPARSE, "x=1.vmdk")),
        ('RW 1 VMFSSPARSE "#.vmdk"', ExtentLine(512, ExtentType.VMFSSPARSE, "#.vmdk")),
        ('RW  1   SESPARSE   "ü.vmdk"', ExtentLine(512, ExtentType.SESPARSE, "ü.vmdk")),
        ("NOACCESS 4 ZERO", ExtentLine(2048, ExtentType.ZERO)),
        ("RW 4 ZERO", ExtentLine(2048, ExtentType.ZERO)),
    ],
)
def test_every_type_of_extent_is_known(line: str, meant: ExtentLine) -> None:
    found = parse_descriptor((HEAD + line + "\n").encode())
    assert found.extents == (meant,)
    assert found.size == meant.size


def test_what_esxi_writes_is_understood() -> None:
    text = (
        '# Disk DescriptorFile\r\nversion=4\r\nencoding="UTF-8"\r\nCID=FFFFFFFE\r\n'
        'parentCID=12345678\r\ncreateType="seSparse"\r\nparentFileNameHint="/vmfs/v/base.vmdk"\r\n'
        '# Extent description\r\nRW 8 SESPARSE "a-sesparse.vmdk"\r\nRW 8 ZERO\r\n\r\n'
        '# Change Tracking File\r\nchangeTrackPath="a-ctk.vmdk"\r\n'
        'ddb.comment = "of "quotes""\r\n'
        'ddb.longContentID = "0123456789abcdef01234567fffffffe"\r\n'
    )
    found = parse_descriptor(text.encode() + bytes(100))
    assert (found.state, found.parent_state) == (
        "vmdk:0123456789abcdef01234567fffffffe",
        "vmdk:12345678",
    )
    assert found.parent == "/vmfs/v/base.vmdk"
    assert found.size == 8192


def test_an_id_is_eight_digits_however_it_is_written() -> None:
    found = parse_descriptor((HEAD + FLAT).encode())
    assert (found.state, found.parent_state, found.has_parent) == ("vmdk:0000000a", "", False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("RW 8 VMFS a-flat.vmdk\n", "in quotes"),
        ('RW 8 VMFS "a-flat.vmdk\n', "in quotes"),
        ('RW 8 VMFS ""\n', "in quotes"),
        ("RW 8 VMFS\n", "in quotes"),
        ('NOACCESS 8 FLAT "a" 0\n', "must not be read"),
        ('RW 8 VMFSRDM "a"\n', "type VMFSRDM"),
        ('RW 8 VMFSRAW "/dev/x"\n', "type VMFSRAW"),
        ('RW 8 NEW "a"\n', "type NEW"),
        ('RW 36028797018963968 FLAT "a" 0\n', "larger than any disk"),
        ('RW 8 FLAT "a" 36028797018963968\n', "larger than any disk"),
        ("", "names 0 extents"),
        (FLAT * 4097, "names 4097 extents"),
        (FLAT + "what is this\n", "not understood"),
        (FLAT + 'key="unterminated\n', "not understood"),
        (FLAT + "CID=xyz\n", "its CID"),
        (FLAT + "CID=123456789\n", "its CID"),
        (FLAT + "parentCID=12\n", "does not tell its file"),
        ("#" * (1 << 20), "longer than 1048575"),
    ],
)
def test_what_is_not_understood_is_refused(text: str, words: str) -> None:
    with pytest.raises(VmdkError, match=words):
        parsed(text)


def test_a_disk_in_use_without_a_long_id_has_no_name() -> None:
    found = parse_descriptor((HEAD + FLAT + "CID=fffffffe\n").encode())
    assert found.state == ""


@pytest.mark.parametrize("first", ["# Disk Descriptor File", "# disk descriptorfile", "\n" + HEAD])
def test_other_hands_write_the_first_line_otherwise(first: str) -> None:
    found = parse_descriptor(f"{first}\nCID=0b\n{FLAT}".encode())
    assert found.state == "vmdk:0000000b"


def test_another_first_line_is_none_of_ours() -> None:
    with pytest.raises(VmdkError, match="does not begin"):
        parsed(FLAT, head="CID=1\n")


@settings(deadline=None)
@given(st.text(max_size=300), st.binary(max_size=300))
def test_any_text_is_read_or_refused(text: str, tail: bytes) -> None:
    for data in ((HEAD + text).encode("utf-8", "surrogatepass") + tail, tail):
        try:
            parse_descriptor(data)
        except VmdkError:
            continue


def described(cid: str, parent_cid: str = "ffffffff") -> bytes:
    head = f"# Disk DescriptorFile\nCID={cid}\nparentCID={parent_cid}\n"
    return (head + 'parentFileNameHint="base.vmdk"\n' + FLAT).encode()


@pytest.mark.parametrize(
    ("child", "parent", "certain"),
    [("12", "12", True), ("fffffffe", "12", False), ("12", "fffffffe", False)],
)
def test_a_parent_is_known_by_its_content(child: str, parent: str, certain: bool) -> None:
    of_child, of_parent = (
        parse_descriptor(described("99", child)),
        parse_descriptor(described(parent)),
    )
    assert (check_parent(of_child, of_parent) == "") is certain


def test_another_content_is_not_the_parent() -> None:
    child, parent = parse_descriptor(described("99", "12")), parse_descriptor(described("13"))
    with pytest.raises(VmdkError, match="has content 00000012, and this one has 00000013"):
        check_parent(child, parent)


@pytest.mark.parametrize(
    ("encoding", "codec"),
    [
        ("UTF-8", "utf-8"),
        ("windows-1252", "cp1252"),
        ("GBK", "gbk"),
        ("windows-936", "cp936"),
        ("Shift_JIS", "shift_jis"),
    ],
)
def test_names_are_in_the_encoding_that_is_said(encoding: str, codec: str) -> None:
    name = {"cp1252": "Schl\u00fcssel.vmdk", "utf-8": "\u78c1\u76d8 \u00fc.vmdk"}.get(
        codec, "\u78c1\u76d8.vmdk" if codec != "shift_jis" else "\u78c1.vmdk"
    )
    text = f'# Disk DescriptorFile\nversion=1\nencoding="{encoding}"\nCID=1\nRW 1 FLAT "{name}" 0\n'
    assert parse_descriptor(text.encode(codec)).extents[0].file == name


@pytest.mark.parametrize("encoding", ["no-such-thing", "UTF-8", "undefined", "idna", "punycode"])
def test_names_that_are_in_no_encoding_are_the_bytes_of_the_host(encoding: str) -> None:
    text = b'# Disk DescriptorFile\nencoding="%s"\nCID=1\nRW 1 FLAT "\xfc.vmdk" 0\n'
    found = parse_descriptor(text % encoding.encode()).extents[0].file
    assert found.encode("utf-8", "surrogateescape") == b"\xfc.vmdk"


def test_a_mark_of_the_byte_order_is_no_text() -> None:
    text = '\ufeff# Disk DescriptorFile\nCID=1\nRW 1 FLAT "a.vmdk" 0\n'
    assert parse_descriptor(text.encode()).extents[0].file == "a.vmdk"
