"""Sixty bad inputs, the answer to each, and the test that shows it; `test_rows.py` iterates the table.

`dimse` is the status of the C-STORE, or what becomes of the association or its context; `http` the status of the
STOW-RS request (PS3.18 §10.5) with the Failure Reason (0008,1197) of the instance. "–" where a row has no such side.
Rows whose answer begins with a status have objects in `objects.py` that are sent through both doors.
"""

from __future__ import annotations

from dataclasses import dataclass

_BOTH = "bad_input/test_objects.py::test_through_both_doors"
_STRICT = "bad_input/test_objects.py::test_strict_refuses_what_no_image_can_have"
_LENIENT = "bad_input/test_objects.py::test_lenient_keeps_what_can_be_read"
_STOW, _BAD_STOW = "protocol/test_stow.py::", "protocol/test_stow_bad_input.py::"
_ACCEPT, _GUARD = "protocol/test_accept.py::", "protocol/test_guard.py::"
_PEERS, _WIRE, _HTTP = "bad_input/test_peers.py::", "bad_input/test_wire.py::", "bad_input/test_http.py::"


@dataclass(frozen=True)
class Row:
    """One kind of bad input."""

    number: int
    what: str
    dimse: str
    http: str
    tests: tuple[str, ...]


ROWS = (
    Row(1, "empty object, 0 bytes", "C000", "409 / C000", (_BOTH,)),
    Row(2, "random bytes", "C000", "409 / C000", (_BOTH,)),
    Row(3, "no preamble", "–", "409 / C000", (_BAD_STOW + "test_what_cannot_be_understood_is_c000",)),
    Row(4, "truncated at 30 %", "C000", "409 / C000", (_BOTH,)),
    Row(5, "truncated at 60 %", "C000", "409 / C000", (_BOTH,)),
    Row(6, "truncated at 95 %", "C000", "409 / C000", (_BOTH,)),
    Row(7, "garbage behind the last element", "C000", "409 / C000", (_BOTH,)),
    Row(8, "a length past the end", "C000", "409 / C000", (_BOTH,)),
    Row(
        9, "odd length; a group length that lies: kept as it is, and logged", "0000", "200",
        (_BOTH, "unit/test_precheck.py::test_odd_and_group_lengths_are_kept_and_counted"),
    ),
    Row(10, "undefined length where none may be", "C000", "409 / C000", (_BOTH,)),
    Row(
        11, "sequences nested 33, 300, 20,000 deep", "C000", "409 / C000",
        (_BOTH, "unit/test_precheck.py::test_deep_nesting_is_c000_at_once"),
    ),
    Row(12, "100,001 elements; 65,536 items", "C000", "409 / C000", (_BOTH,)),
    Row(
        13, "Deflated", "context result 4", "409 / C122",
        (_WIRE + "test_what_is_not_offered_is_refused_in_the_negotiation",
         _BAD_STOW + "test_what_the_listener_would_not_negotiate_is_refused"),
    ),
    Row(
        14, "deflate bomb", "context result 4", "409 / C122",
        (_WIRE + "test_what_is_not_offered_is_refused_in_the_negotiation",
         _BAD_STOW + "test_what_the_listener_would_not_negotiate_is_refused"),
    ),
    Row(
        15, "big endian, private, JPEG XL", "context result 4", "409 / C122",
        (_WIRE + "test_what_is_not_offered_is_refused_in_the_negotiation",
         _BAD_STOW + "test_what_the_listener_would_not_negotiate_is_refused"),
    ),
    Row(
        16, "a SOP class that is no image or document: DICOMDIR, Hanging Protocol", "context result 3", "409 / 0122",
        (_WIRE + "test_what_is_not_offered_is_refused_in_the_negotiation",
         _BAD_STOW + "test_what_the_listener_would_not_negotiate_is_refused"),
    ),
    Row(17, "SOP Class UID other than announced", "A900", "409 / A900", (_BOTH,)),
    Row(18, "SOP Instance UID other than announced", "A900", "409 / A900", (_BOTH,)),
    Row(
        19, "Study Instance UID other than that of the address", "–", "409 / A900",
        (_STOW + "test_a_study_in_the_address_is_the_only_one_taken",),
    ),
    Row(20, "no SOP Class, SOP Instance, Study or Series UID", "A900", "409 / A900", (_BOTH,)),
    Row(
        21, "UIDs that are none: paths, letters, NUL, two values, too long", "C000", "409 / C000",
        (_BOTH, _LENIENT, _ACCEPT + "test_a_uid_that_is_none_is_c000_and_no_path"),
    ),
    Row(22, "no Affected SOP Instance UID", "A-ABORT", "–",
        (_GUARD + "test_a_store_without_instance_uid_is_aborted_not_left_hanging",)),
    Row(
        23, "Rows or Columns 0, missing, as UL, 65535²: kept, the job answers; strict: A900", "0000", "200",
        (_BOTH, _STRICT, "unit/test_pixels.py::test_what_cannot_be_read_is_named"),
    ),
    Row(
        24, "Number of Frames −1, 0, 2^31, text: kept, the job answers; strict: A900", "0000", "200",
        (_BOTH, _STRICT, "unit/test_pixels.py::test_a_size_that_is_a_lie_is_refused_before_decoding"),
    ),
    Row(
        25, "Bits Allocated 7, Samples per Pixel 0, unknown photometry: kept, the job answers; strict: A900",
        "0000", "200", (_BOTH, _STRICT, "unit/test_pixels.py::test_what_cannot_be_read_is_named"),
    ),
    Row(26, "native Pixel Data shorter or longer than its attributes say", "A900", "409 / A900", (_BOTH, _LENIENT)),
    Row(27, "fragments whose structure is broken", "C000", "409 / C000", (_BOTH,)),
    Row(
        28, "fragments that hold no picture: corrupt, a bomb, no or lying offsets; kept, the job answers",
        "0000", "200",
        (_BOTH, "unit/test_pixels.py::test_a_crafted_rle_frame_ends_as_unsuitable",
         "unit/test_pixels.py::test_a_broken_codestream_ends_as_unsuitable",
         "unit/test_reader.py::test_a_reading_that_goes_wrong_is_an_outcome_and_the_next_one_is_not_touched"),
    ),
    Row(29, "character sets and names that cannot be read", "0000", "200", (_BOTH,)),
    Row(
        30, "script, templates, line ends, formulas in a name: kept, shown escaped", "0000", "200",
        (_BOTH, "unit/test_web.py::test_text_of_a_stranger_is_escaped",
         "unit/test_log.py::test_a_field_cannot_begin_a_new_line"),
    ),
    Row(
        31, "dates, numbers and geometry that are none: kept, the job answers", "0000", "200",
        (_BOTH, "unit/test_geometry.py::test_one_odd_slice_is_named",
         "unit/test_series.py::test_a_tilted_head_ct_is_refused"),
    ),
    Row(
        32, "one position twice, two phases in one series: the job answers", "–", "–",
        ("unit/test_geometry.py::test_different_pictures_of_one_place_are_refused",
         "unit/test_series.py::test_two_b_values_in_one_series_are_refused"),
    ),
    Row(33, "a preamble that is a program: not kept", "–", "200",
        (_STOW + "test_what_comes_with_the_file_is_checked_and_not_kept",)),
    Row(
        34, "30,000 private elements; beyond the limit of size as row 35", "0000", "200",
        (_BOTH, _BAD_STOW + "test_too_much_is_413"),
    ),
    Row(
        35, "an object larger than the node takes", "A700, A-ABORT as soon as the stream passes the limit", "413",
        (_WIRE + "test_an_object_that_is_too_large_is_a700_and_an_abort_before_its_end",
         _GUARD + "test_a_message_larger_than_the_node_takes_is_aborted", _BAD_STOW + "test_too_much_is_413"),
    ),
    Row(36, "Encrypted Attributes Sequence", "0000", "200", (_BOTH,)),
    Row(37, "wrong called AE Title", "RJ 1,1,7", "–", (_ACCEPT + "test_who_is_not_a_peer_is_rejected",)),
    Row(
        38, "unknown calling AE Title or address", "RJ 1,1,3", "401",
        (_ACCEPT + "test_who_is_not_a_peer_is_rejected", _HTTP + "test_who_has_no_token_stores_nothing"),
    ),
    Row(
        39, "no user identity, or a wrong one, where it is asked for", "RJ 1,1,1", "401",
        (_PEERS + "test_a_peer_that_must_say_who_it_is_is_rejected_without",
         _HTTP + "test_who_has_no_token_stores_nothing"),
    ),
    Row(
        40, "128 contexts and one, even and equal ids, no context, endless UIDs, another application context or "
        "protocol version", "RJ or A-ABORT", "–",
        (_WIRE + "test_odd_association_requests_are_refused_and_cost_nothing",
         _GUARD + "test_a_wrong_protocol_version_and_application_context_are_rejected"),
    ),
    Row(41, "no context that is accepted", "A-ASSOCIATE-AC", "–",
        (_ACCEPT + "test_an_association_without_any_accepted_context_does_no_harm",)),
    Row(
        42, "half a header, a byte a second, silence", "closed at the deadline", "408",
        (_GUARD + "test_a_connection_that_says_nothing_or_drips_is_cut",
         _GUARD + "test_a_pdu_that_stops_in_the_middle_is_cut",
         _WIRE + "test_an_association_that_falls_silent_is_aborted",
         _BAD_STOW + "test_a_sender_that_falls_silent_is_408_and_one_that_goes_leaves_nothing",
         _BAD_STOW + "test_a_sender_that_drips_is_408", "unit/test_web.py::"
         "test_a_request_that_does_not_come_ends_its_connection"),
    ),
    Row(
        43, "PDUs that are too long, unknown, empty, out of order", "A-ABORT", "–",
        (_GUARD + "test_what_is_no_association_request_is_aborted_at_once",
         _GUARD + "test_a_violation_ends_the_association_and_nothing_else"),
    ),
    Row(
        44, "commands that are unknown, out of place, incomplete or answers", "0211 or A-ABORT", "–",
        (_WIRE + "test_a_command_that_is_none_is_answered_or_ends_the_association",),
    ),
    Row(
        45, "half-open connections, associations without end: a known peer gets in", "closed; RJ 2,3,2", "503",
        (_PEERS + "test_a_known_peer_gets_in_whoever_else_holds_places",
         _PEERS + "test_strangers_are_shown_out_before_the_address_of_a_peer",
         _STOW + "test_more_requests_than_there_are_threads_are_503"),
    ),
    Row(
        46, "requests that do not wait: the socket is not read, so nothing piles up", "0000 for each", "–",
        (_GUARD + "test_requests_that_do_not_wait_are_all_answered_in_turn",),
    ),
    Row(
        47, "HTTP or TLS on the DICOM port", "A-ABORT or closed, one log line", "–",
        (_GUARD + "test_what_is_no_association_request_is_aborted_at_once",),
    ),
    Row(
        48, "old TLS, weak ciphers, certificates that are missing, expired, of another CA", "alert, audited", "–",
        (_PEERS + "test_old_versions_weak_ciphers_and_wrong_certificates_are_refused_and_audited",),
    ),
    Row(
        49, "Content-Type missing, of another kind, JSON without bulk data", "–", "415",
        (_BAD_STOW + "test_other_media_types_are_415",),
    ),
    Row(
        50, "boundaries and headers that are none, endless, nested", "–", "400",
        (_BAD_STOW + "test_a_boundary_that_is_none_is_400", _BAD_STOW + "test_a_body_that_is_no_multipart_is_400"),
    ),
    Row(
        51, "Content-Encoding; chunks and lengths that lie", "–", "415; 400; 408; 413",
        (_BAD_STOW + "test_an_encoded_body_is_415", _BAD_STOW + "test_framing_that_lies",
         _HTTP + "test_a_length_beyond_the_limit_is_413_before_a_byte_is_read"),
    ),
    Row(
        52, "one good instance and one bad", "–", "202 / Failed SOP Sequence",
        (_STOW + "test_a_good_and_a_bad_one_are_202_with_decimal_reasons",),
    ),
    Row(
        53, "metadata with remote bulk data; XML with entities", "–", "415; nothing is fetched",
        (_BAD_STOW + "test_metadata_with_remote_bulk_data_is_415_or_refused_and_never_fetched",),
    ),
    Row(
        54, "paths, endless addresses, other methods, another Host", "–", "400; 404; 405; 414",
        (_BAD_STOW + "test_addresses_that_are_none", _BAD_STOW + "test_other_methods_and_addresses_without_end",
         "unit/test_web.py::test_without_a_token_only_local_names_are_answered"),
    ),
    Row(
        55, "no token, a wrong one, many wrong ones, a page of another origin", "–", "401; 429; 403",
        ("unit/test_web.py::test_with_a_token_nobody_else_gets_in",
         _HTTP + "test_guessing_tokens_is_429_for_the_guesser", _STOW + "test_pages_of_other_sites_cannot_store"),
    ),
    Row(
        56, "pages that are no number, filters with SQL, large and deep JSON", "–", "400; 405; 415",
        (_HTTP + "test_queries_that_are_none_are_400", _HTTP + "test_json_is_taken_nowhere"),
    ),
    Row(
        57, "configuration: no TOML, unknown and double keys, units, ports, paths, titles, one port twice",
        "exit 2", "–",
        ("unit/test_settings.py::test_a_fault_names_file_line_key_and_expectation",
         "bad_input/test_command_line.py::test_a_wrong_configuration_is_status_2_and_one_line"),
    ),
    Row(
        58, "bundles: fields missing, a version that is none, another digest, code of a stranger", "exit 1 or 2", "–",
        ("bad_input/test_command_line.py::test_a_version_that_is_none_is_named",
         "bad_input/test_command_line.py::test_a_wrong_bundle_is_refused_with_its_file_and_key",
         "unit/test_trust.py::test_a_changed_file_is_refused",
         "unit/test_trust.py::test_a_pickle_with_other_code_is_shown_and_not_pinned",
         "unit/test_trust.py::test_looking_and_listing_run_nothing_and_pin_nothing"),
    ),
    Row(
        59, "command line: unknown commands, missing files, folders for files, Ctrl-C, a closed pipe, another locale",
        "exit 2, 130, 141", "–",
        ("unit/test_cli.py::test_an_error_is_one_line_and_a_status", "unit/test_cli.py::test_ctrl_c_is_130",
         "unit/test_cli.py::test_a_closed_pipe_ends_quietly",
         "unit/test_cli.py::test_a_narrow_locale_does_not_stop_a_listing",
         "bad_input/test_command_line.py::test_a_folder_or_an_unreadable_file_for_a_configuration_is_status_2"),
    ),
    Row(
        60, "mutations of everything above", "no exception, no hang over 2 s, bounded memory", "the same",
        ("fuzz/test_fuzz.py::test_no_mutation_raises_hangs_or_grows",
         "fuzz/test_fuzz.py::test_the_listener_outlives_mutations"),
    ),
)  # fmt: skip
