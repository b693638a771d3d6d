# Owns the DWARF numbers the rest of symbols/ uses, and LEB128. Values: DWARF 5, section 7.
from __future__ import annotations

from typing import Final

TAG_array_type: Final = 0x01
TAG_class_type: Final = 0x02
TAG_enumeration_type: Final = 0x04
TAG_formal_parameter: Final = 0x05
TAG_lexical_block: Final = 0x0B
TAG_member: Final = 0x0D
TAG_pointer_type: Final = 0x0F
TAG_reference_type: Final = 0x10
TAG_compile_unit: Final = 0x11
TAG_skeleton_unit: Final = 0x4A
TAG_structure_type: Final = 0x13
TAG_typedef: Final = 0x16
TAG_union_type: Final = 0x17
TAG_inheritance: Final = 0x1C
TAG_variant: Final = 0x19
TAG_inlined_subroutine: Final = 0x1D
TAG_subrange_type: Final = 0x21
TAG_base_type: Final = 0x24
TAG_const_type: Final = 0x26
TAG_enumerator: Final = 0x28
TAG_subprogram: Final = 0x2E
TAG_variant_part: Final = 0x33
TAG_variable: Final = 0x34
TAG_volatile_type: Final = 0x35
TAG_restrict_type: Final = 0x37
TAG_namespace: Final = 0x39
TAG_rvalue_reference_type: Final = 0x42
TAG_atomic_type: Final = 0x47
RECORD_TAGS: Final = frozenset((TAG_structure_type, TAG_union_type, TAG_class_type))

AT_sibling: Final = 0x01
AT_location: Final = 0x02
AT_producer: Final = 0x25
AT_name: Final = 0x03
AT_byte_size: Final = 0x0B
AT_bit_offset: Final = 0x0C
AT_bit_size: Final = 0x0D
AT_data_bit_offset: Final = 0x6B
AT_stmt_list: Final = 0x10
AT_low_pc: Final = 0x11
AT_high_pc: Final = 0x12
AT_discr: Final = 0x15
AT_discr_value: Final = 0x16
AT_language: Final = 0x13
AT_comp_dir: Final = 0x1B
AT_const_value: Final = 0x1C
AT_inline: Final = 0x20
AT_upper_bound: Final = 0x2F
AT_abstract_origin: Final = 0x31
AT_count: Final = 0x37
AT_external: Final = 0x3F
AT_data_member_location: Final = 0x38
AT_decl_column: Final = 0x39
AT_decl_file: Final = 0x3A
AT_decl_line: Final = 0x3B
AT_declaration: Final = 0x3C
AT_encoding: Final = 0x3E
AT_frame_base: Final = 0x40
AT_specification: Final = 0x47
AT_type: Final = 0x49
AT_entry_pc: Final = 0x52
AT_ranges: Final = 0x55
AT_call_column: Final = 0x57
AT_call_file: Final = 0x58
AT_call_line: Final = 0x59
AT_linkage_name: Final = 0x6E
AT_str_offsets_base: Final = 0x72
AT_addr_base: Final = 0x73
AT_rnglists_base: Final = 0x74
AT_loclists_base: Final = 0x8C
AT_dwo_name: Final = 0x76
AT_virtuality: Final = 0x4C
AT_signature: Final = 0x69
AT_MIPS_linkage_name: Final = 0x2007
AT_GNU_dwo_name: Final = 0x2130
AT_GNU_dwo_id: Final = 0x2131
AT_GNU_ranges_base: Final = 0x2132
AT_GNU_addr_base: Final = 0x2133
AT_GNU_locviews: Final = 0x2137

FORM_addr: Final = 0x01
FORM_block2: Final = 0x03
FORM_block4: Final = 0x04
FORM_data2: Final = 0x05
FORM_data4: Final = 0x06
FORM_data8: Final = 0x07
FORM_string: Final = 0x08
FORM_block: Final = 0x09
FORM_block1: Final = 0x0A
FORM_data1: Final = 0x0B
FORM_flag: Final = 0x0C
FORM_sdata: Final = 0x0D
FORM_strp: Final = 0x0E
FORM_udata: Final = 0x0F
FORM_ref_addr: Final = 0x10
FORM_ref1: Final = 0x11
FORM_ref2: Final = 0x12
FORM_ref4: Final = 0x13
FORM_ref8: Final = 0x14
FORM_ref_udata: Final = 0x15
FORM_indirect: Final = 0x16
FORM_sec_offset: Final = 0x17
FORM_exprloc: Final = 0x18
FORM_flag_present: Final = 0x19
FORM_strx: Final = 0x1A
FORM_addrx: Final = 0x1B
FORM_ref_sup4: Final = 0x1C
FORM_strp_sup: Final = 0x1D
FORM_data16: Final = 0x1E
FORM_line_strp: Final = 0x1F
FORM_ref_sig8: Final = 0x20
FORM_implicit_const: Final = 0x21
FORM_loclistx: Final = 0x22
FORM_rnglistx: Final = 0x23
FORM_ref_sup8: Final = 0x24
FORM_strx1: Final = 0x25
FORM_strx2: Final = 0x26
FORM_strx3: Final = 0x27
FORM_strx4: Final = 0x28
FORM_addrx1: Final = 0x29
FORM_addrx2: Final = 0x2A
FORM_addrx3: Final = 0x2B
FORM_addrx4: Final = 0x2C
FORM_GNU_addr_index: Final = 0x1F01
FORM_GNU_str_index: Final = 0x1F02
FORM_GNU_ref_alt: Final = 0x1F20
FORM_GNU_strp_alt: Final = 0x1F21

STRX_FORMS: Final = frozenset((FORM_strx, FORM_strx1, FORM_strx2, FORM_strx3, FORM_strx4, FORM_GNU_str_index))
ADDRX_FORMS: Final = frozenset(
    (FORM_addrx, FORM_addrx1, FORM_addrx2, FORM_addrx3, FORM_addrx4, FORM_GNU_addr_index)
)
BLOCK_FORMS: Final = frozenset((FORM_block, FORM_block1, FORM_block2, FORM_block4, FORM_exprloc))
SUP_REF_FORMS: Final = frozenset((FORM_ref_sup4, FORM_ref_sup8, FORM_GNU_ref_alt))
SUP_STR_FORMS: Final = frozenset((FORM_strp_sup, FORM_GNU_strp_alt))
UNIT_REF_FORMS: Final = frozenset((FORM_ref1, FORM_ref2, FORM_ref4, FORM_ref8, FORM_ref_udata))

# Sizes that do not depend on the unit; 'addr' and 'offset' sized forms are filled in per unit.
FIXED_SIZES: Final[dict[int, int]] = {
    FORM_data1: 1,
    FORM_data2: 2,
    FORM_data4: 4,
    FORM_data8: 8,
    FORM_data16: 16,
    FORM_flag: 1,
    FORM_ref1: 1,
    FORM_ref2: 2,
    FORM_ref4: 4,
    FORM_ref8: 8,
    FORM_ref_sig8: 8,
    FORM_ref_sup4: 4,
    FORM_ref_sup8: 8,
    FORM_flag_present: 0,
    FORM_implicit_const: 0,
    FORM_strx1: 1,
    FORM_strx2: 2,
    FORM_strx3: 3,
    FORM_strx4: 4,
    FORM_addrx1: 1,
    FORM_addrx2: 2,
    FORM_addrx3: 3,
    FORM_addrx4: 4,
}
OFFSET_FORMS: Final = (
    FORM_strp,
    FORM_line_strp,
    FORM_sec_offset,
    FORM_strp_sup,
    FORM_GNU_ref_alt,
    FORM_GNU_strp_alt,
)
LEB_FORMS: Final = frozenset(
    (
        FORM_udata,
        FORM_sdata,
        FORM_ref_udata,
        FORM_strx,
        FORM_addrx,
        FORM_loclistx,
        FORM_rnglistx,
        FORM_GNU_addr_index,
        FORM_GNU_str_index,
    )
)


def uleb_bytes(value: int) -> bytes:
    """The shortest ULEB128 encoding."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
