"""The faults that the node must survive, by number: what goes wrong, how it is brought about, what is expected, and
which tests show it. `test_faults.py` walks the table: a test that is named here exists.

A name ends in `::test_…`, or is the target of `make` that does it at random.
"""

from __future__ import annotations

from dataclasses import dataclass

POINTS = "tests/crash/test_crash_points.py::test_a_kill_at_this_point_loses_nothing"
MORE = "tests/crash/test_faults.py::"
WORKER = "tests/crash/test_worker_crash.py::"
DELIVERY = "tests/protocol/test_delivery.py::"
DB = "tests/unit/test_db.py::"
READER = "tests/unit/test_reader.py::"
TASKS = "tests/unit/test_tasks.py::"
JOBS = "tests/unit/test_jobs.py::"
TRUST = "tests/unit/test_trust.py::"
SPOOL = "tests/unit/test_spool.py::"
STUDIES = "tests/unit/test_studies.py::"


@dataclass(frozen=True)
class Fault:
    """One fault; `shown_by` is empty only where `expected` says why it cannot happen."""

    number: int
    what: str
    how: str
    expected: str
    shown_by: tuple[str, ...]


FAULTS = (
    Fault(1, "kill before the write", "spool.before_write:kill", "no acknowledgement; sent again", (POINTS,)),
    Fault(2, "kill before the sync", "spool.before_fsync:kill", "as 1; the temporary file goes",
          (POINTS, "tests/unit/test_recover.py::test_stray_temporary_files_go_and_young_ones_stay")),
    Fault(3, "kill before the index knows", "register.before_commit:kill", "registered at the next start",
          (POINTS, "tests/unit/test_daemon.py::test_what_was_acknowledged_before_a_crash_is_registered_again")),
    Fault(4, "kill before the answer", "ingest.before_rsp:kill", "sent again: 0000H and one row",
          (POINTS, "tests/protocol/test_accept.py::test_the_same_instance_twice_is_one")),
    Fault(5, "kill or cut in the middle of a PDU", "kill under load; a sender that stops", "nothing half is kept",
          ("tests/protocol/test_accept_crash.py::test_killed_under_load_nothing_acknowledged_is_lost",
           "tests/protocol/test_guard.py::test_a_pdu_that_stops_in_the_middle_is_cut")),
    Fault(6, "kill while a study becomes jobs", "assemble.*, route.*, ring.*:kill", "one job per study, series, bundle",
          (POINTS,)),
    Fault(7, "kill of the worker", "claim.*, report.*:kill; kill in a reading", "read by another; the child goes along",
          (POINTS,
           WORKER + "test_a_worker_killed_in_a_reading_loses_nothing_and_reports_once",
           READER + "test_the_child_dies_with_a_parent_that_is_killed_and_goes_first_when_memory_is_out")),
    Fault(8, "kill of the child", "read.before_answer:kill; kill -9 in a reading", "an attempt more, next job whole",
          (POINTS, READER + "test_a_reading_that_goes_wrong_is_an_outcome_and_the_next_one_is_not_touched")),
    Fault(9, "kill between result files and their rows", "report.before, report.before_commit:kill",
          "read again under the same UIDs, one set in the PACS", (POINTS,)),
    Fault(10, "kill between the PACS's answer and the row", "send.after_rsp:kill", "same bytes again, one object there",
          (POINTS, DELIVERY + "test_killed_between_the_answer_and_the_commit_the_pacs_holds_one")),
    Fault(11, "kill of everything at once", "kill -9 of node, worker and all below", "nothing lost, doubled or stuck",
          (MORE + "test_everything_is_killed_at_once", "make chaos")),
    Fault(12, "no broker at the start", "nothing listens at its address", "acknowledged; rung once it is there",
          (MORE + "test_without_a_broker_studies_are_taken_and_rung_for_once_it_is_there",)),
    Fault(13, "kill of the broker", "SHUTDOWN; kill -9, with and without its file", "started again; jobs run",
          (WORKER + "test_a_worker_outlives_its_broker", "make chaos",
           "tests/unit/test_broker.py::test_a_server_that_dies_is_started_again_and_rings_wait_in_its_file")),
    Fault(14, "the broker forgets", "FLUSHALL", "rung for again; one reading",
          (WORKER + "test_the_jobs_of_a_broker_that_forgot_everything_ring_again",)),
    Fault(15, "the broker hangs", "SIGSTOP", "acknowledged as quickly as ever; rung for afterwards",
          (MORE + "test_a_broker_that_hangs_costs_a_sender_nothing",)),
    Fault(16, "the broker is full", "maxmemory, noeviction", "the job waits in the database and rings later",
          (MORE + "test_a_broker_without_memory_leaves_the_job_in_the_database",)),
    Fault(17, "poison in the queue", "LPUSH of pickles, broken JSON, tasks of others, no or unknown ids",
          "dropped with a line, never unpickled; the worker lives and the sweep rings again",
          (WORKER + "test_poison_in_the_queue_is_dropped_with_one_line_and_the_worker_goes_on",
           WORKER + "test_a_job_whose_message_was_lost_with_poison_is_rung_for_again",
           TASKS + "test_an_unknown_id_is_dropped_without_a_word")),
    Fault(18, "fifty messages for one job", "publish in a loop", "one claim, one result",
          (WORKER + "test_fifty_messages_for_one_job_make_one_reading",)),
    Fault(19, "a reading outlives its lease", "no heartbeat", "fenced out; the new holder alone files",
          (TASKS + "test_a_lost_lease_ends_the_reading_and_discards_it",
           JOBS + "test_a_worker_that_lost_its_lease_changes_nothing")),
    Fault(20, "the database is locked", "BEGIN EXCLUSIVE in another process", "0000H or A700H, never C211H",
          (MORE + "test_a_locked_database_is_never_a_c211", DB + "test_a_locked_database_is_unavailable_and_says_so")),
    Fault(21, "PostgreSQL goes in a commit", "pg_terminate_backend", "nothing half; done again, it is one",
          (MORE + "test_a_connection_cut_in_a_transaction_leaves_all_or_nothing",)),
    Fault(22, "a damaged database file", "garbage in its place", "no start, a message with the remedy, file untouched",
          (DB + "test_a_file_that_is_no_database_is_left_as_it_is",
           MORE + "test_a_damaged_database_is_one_line_and_no_start")),
    Fault(23, "the spool's disk is full", "watermark; enospc", "A700H or 503; nothing half; goes on when there is room",
          ("tests/crash/test_crash_points.py::test_a_disk_that_fails_there_is_answered_a700_and_leaves_nothing",
           "tests/protocol/test_accept.py::test_a_spool_below_its_watermark_answers_a700_and_the_association_stays",
           "tests/protocol/test_stow.py::test_a_full_disk_is_503_and_later_and_keeps_nothing")),
    Fault(24, "only the database's or the results' disk is full", "max_page_count; refuse_below",
          "nothing is written; the job stays QUEUED, and no attempt counts",
          (DB + "test_a_full_disk_is_no_room", TASKS + "test_a_spool_without_room_leaves_the_job_queued",
           TASKS + "test_a_reading_that_finds_the_disk_full_waits_for_room_and_is_no_attempt",
           TASKS + "test_no_reading_begins_without_room_and_the_log_says_so_once")),
    Fault(25, "the disk fails", "eio", "A700H; a sync that failed is not tried again",
          ("tests/crash/test_crash_points.py::test_a_disk_that_fails_there_is_answered_a700_and_leaves_nothing",
           SPOOL + "test_an_error_of_the_disk_keeps_nothing")),
    Fault(26, "the PACS is down", "nothing listens; no such host", "growing rests, for 72 h; others go on",
          (DELIVERY + "test_a_pacs_that_is_down_is_tried_with_growing_rests_until_the_patience_ends",
           DELIVERY + "test_a_host_that_does_not_resolve_is_a_passing_failure")),
    Fault(27, "the PACS rejects the association", "(1,1,7) (1,1,3) (2,3,2)", "for good: DEAD; passing: again later",
          (DELIVERY + "test_rejections",)),
    Fault(28, "the PACS takes no SEG", "context refused", "the SR arrives; the SEG is DEAD with its reason",
          (DELIVERY + "test_a_refused_class_is_dead_and_the_other_document_is_sent",)),
    Fault(29, "the PACS refuses", "A7xx 0110 0213; A9xx Cxxx 0122 0124; 0111", "again; DEAD; asked by C-FIND",
          (DELIVERY + "test_out_of_resources_twice_then_success_is_three_attempts_and_one_object",
           DELIVERY + "test_a_refusal_for_good_is_dead_with_its_reason_and_stops_nothing_else",
           DELIVERY + "test_duplicate_is_settled_by_c_find")),
    Fault(30, "the PACS warns", "B000 B006 B007", "a success that is shown",
          (DELIVERY + "test_a_warning_is_a_success_that_people_can_see",)),
    Fault(31, "the PACS stores and never answers", "hang", "same bytes again after the timeout; one object",
          (DELIVERY + "test_stored_but_never_answered_is_sent_again_and_held_once",)),
    Fault(32, "the PACS stops reading", "stall", "a timeout; no thread is left",
          (DELIVERY + "test_a_pacs_that_stops_reading_costs_a_timeout_and_no_thread",)),
    Fault(33, "the PACS is cut off", "after so many bytes, by a proxy; abort", "again; one object",
          (MORE + "test_a_connection_cut_after_so_many_bytes_is_sent_again_and_held_once",
           DELIVERY + "test_stored_but_never_answered_is_sent_again_and_held_once")),
    Fault(34, "a STOW destination misbehaves", "", "not applicable: destinations are C-STORE alone", ()),
    Fault(35, "a study twice at once", "two senders", "one row each, one job",
          (MORE + "test_two_senders_of_one_study_make_one_job",)),
    Fault(36, "a study in five associations", "three AE Titles, out of order, with pauses", "one revision",
          (MORE + "test_a_study_in_five_associations_of_three_senders_is_one_revision",)),
    Fault(37, "late slices", "after the close, in a reading, after delivery", "the next revision names its predecessor",
          (STUDIES + "test_a_late_instance_reopens_the_study_at_every_stage",
           "tests/unit/test_assembler.py::test_a_late_instance_makes_the_next_revision",
           "tests/e2e/test_late_instance.py::test_a_late_slice_is_read_again_and_results_that_come_back_are_not")),
    Fault(38, "other bytes under a known UID", "same SOP Instance UID, other data set",
          "both kept and noted; a study with other pixels waits for a person",
          (STUDIES + "test_other_bytes_under_one_uid_are_both_kept_and_the_last_is_read",
           "tests/unit/test_invariants.py::test_a_second_data_set_that_nothing_noted_is_named",
           "tests/unit/test_conflict.py::test_a_person_releases_a_held_study_by_the_command",
           "tests/crash/test_crash_points.py::test_a_kill_while_a_study_is_held_or_released_leaves_it_held")),
    Fault(39, "the clock jumps", "+1 day, -1 day, 1970", "one job, no second close, events keep their order",
          (MORE + "test_a_clock_that_jumps_makes_no_second_job_and_no_disorder",)),
    Fault(40, "a model misbehaves", "raises, hangs, exits, dies, NaN, wrong shape, empty mask, prints, no memory",
          "an outcome with its reason; nothing is sent but what passed the gate",
          (READER + "test_a_reading_that_goes_wrong_is_an_outcome_and_the_next_one_is_not_touched",
           READER + "test_a_reading_past_its_deadline_is_killed", READER + "test_what_a_model_prints_goes_nowhere",
           "tests/unit/test_network.py::test_nan_is_no_answer_even_where_argmax_would_hide_it",
           "tests/unit/test_segment.py::test_an_answer_that_does_not_fit_is_not_reported",
           "tests/unit/test_classify.py::test_what_is_no_probability_is_not_reported",
           "tests/unit/test_evidence.py::test_nothing_found_is_said_and_not_painted",
           TASKS + "test_a_reading_that_hangs_uses_up_its_attempts_and_is_dead")),
    Fault(41, "weights that are not those that were trusted", "changed, cut, missing, a pickle with code",
          "refused at load; a dead letter until they are back",
          (TRUST + "test_a_changed_file_is_refused",
           TRUST + "test_a_job_for_a_bundle_that_is_not_trusted_is_a_dead_letter_until_it_is",
           "tests/unit/test_network.py::test_another_digest_is_not_run",
           "tests/unit/test_network.py::test_weights_are_never_unpickled_into_code",
           "tests/unit/test_weights.py::test_a_trap_is_named_and_not_sprung",
           TASKS + "test_a_bundle_that_is_gone_is_named")),
    Fault(42, "a new configuration", "SIGHUP with a good, a broken and an impossible file",
          "a good one is taken in; else the old one stays, with one line; no association drops",
          (MORE + "test_sighup_takes_a_good_configuration_in_and_keeps_the_old_one_before_a_bad_one",
           "tests/unit/test_settings.py::test_a_fault_names_file_line_key_and_expectation")),
)  # fmt: skip
