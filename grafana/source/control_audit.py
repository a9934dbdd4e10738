"""Control and audit: who did what to the guests, and did it work?"""

from __future__ import annotations

from grafana.source import infinity, levels
from grafana.source.fleet import ALERTS, OPERATIONS
from grafana.source.grid import Dashboard, Row
from grafana.source.panels import YES_NO, Query, graph, listing, number, upper

RUNS = "virtgauge_control_rule_runs_total"
NO_RULES = "No rules (control.rules_file)"
FAILED = 'outcome=~"failed|timed-out|unreachable"'
REFUSED = 'outcome=~"refused|forbidden|busy|unconfirmed|not-found|invalid|unsupported"'


def over_time(matchers: str = "", by: str = "", counter: str = "virtgauge_control_operations_total") -> str:
    """Operations in the time shown; a series begins with its first operation, which is no increase."""
    series = f"{counter}{{@host{',' if matchers else ''}{matchers}}}"
    return (f"round(sum {f'by ({by}) ' if by else ''}(({series} unless {series} offset $__range) or "
            f"increase({series}[$__range])))")


def a_minute(by: str, matchers: str = "") -> str:
    """Operations a minute of late."""
    return (f"60 * sum by ({by}) (rate(virtgauge_control_operations_total{{@host{',' if matchers else ''}{matchers}}}"
            "[$__rate_interval]))")


CONTROL = Dashboard(
    uid="virtgauge-control", title="virtgauge / Control and audit", annotations=(ALERTS, OPERATIONS),
    more_variables=(infinity.variable("control"),),
    source="virtgauge_control_operations_running",
    description="Who did what to the guests, and did it work? Operations of the control service by outcome and time, and its "
                "audit trail.",
    rows=(
        Row("Now", (
            number("Running", "Operations that may change something, running now.", "none",
                   "sum(virtgauge_control_operations_running{@host})", width=6),
            number("Changed something", "Operations that changed something, in the time shown.", "none",
                   over_time('outcome="changed"'), width=6, empty="None", instant=True),
            number("Failed", "Operations that did not do what they should, in the time shown.", "none",
                   over_time(FAILED), steps=upper(1), width=6, empty="None", instant=True),
            number("Interface change open", "A change of host interfaces that waits for its confirmation; unconfirmed "
                   "it is rolled back.", "none", "max(virtgauge_control_interface_change_open{@host})", width=6,
                   words={"0": ("none", "green"), "1": ("waits", "orange")}, trend=False),
        )),
        Row("Operations", (
            graph("Operations by outcome", "Operations a minute: changed, unchanged, read, dry-run, or the kind of "
                  "error.", "opm", Query(a_minute("outcome"), "{{outcome}}"), empty="No operation yet"),
            graph("Operations by kind", "Operations a minute by what they do.", "opm",
                  Query(a_minute("operation"), "{{operation}}"), empty="No operation yet"),
            graph("Failed and refused", "Failed: did not do what it should. Refused: not allowed, not possible in this "
                  "state, or not found.", "opm",
                  Query(a_minute("operation", FAILED), "{{operation}} failed"),
                  Query(a_minute("operation", REFUSED), "{{operation}} refused"), empty="None"),
            graph("Duration, 95 %", "Seconds within which 95 % of the operations of a kind end.", "s",
                  Query("histogram_quantile(0.95, sum by (operation, le) "
                        "(rate(virtgauge_control_operation_duration_seconds_bucket{@host}[$__rate_interval])))",
                        "{{operation}}"), empty="No operation yet"),
            listing("Operations", "Runs by operation and outcome, in the time shown. Who asked, and why: row Who did "
                    "what, or virtgauge control audit.",
                    Query(over_time(by="instance, operation, outcome") + " > 0", "Runs"),
                    labels={"instance": "Host", "operation": "Operation", "outcome": "Outcome"}, sort="Runs",
                    empty="No operation yet"),
        )),
        Row("Rules that act", (
            number("Acts of rules", "What rules did to guests, in the time shown: done, or undone when the alert resolved.",
                   "none", over_time('result=~"done|undone"', counter=RUNS), width=6, empty=NO_RULES, instant=True),
            number("Acts that failed", "Acts of rules that failed, or of which it is unknown what became of them, in the "
                   "time shown.", "none", over_time('result=~"failed|unknown"', counter=RUNS), steps=upper(1), width=6,
                   empty=NO_RULES, instant=True),
            number("Wait for approval", "Acts that somebody must approve: virtgauge control pending list. They expire.",
                   "none", "sum(virtgauge_control_rule_acts_pending{@host})", steps=upper(1), width=6, empty=NO_RULES),
            number("Kill switch", "Whether rules may act at all: virtgauge control rules stop and go.", "none",
                   "max(virtgauge_control_rules_stopped{@host})", width=6, trend=False, empty=NO_RULES,
                   words={"0": ("rules act", "green"), "1": ("stopped", "orange")}),
            graph("Acts of rules by result", "What became of the rules' acts, each step is one: dry-run is what would have "
                  "been done, expired what nobody approved in time.", "none",
                  Query(f"round(sum by (rule, result) (increase({RUNS}{{@host}}[$__rate_interval]))) and "
                        f"sum by (rule, result) (increase({RUNS}{{@host}}[$__range])) > 0", "{{rule}} {{result}}"),
                  calcs=("max",), width=8, empty="No rule acted"),
            graph("Alerts received and waiting", "Alerts that came by the webhook, a minute, and those that wait in the "
                  "queue now.", "none",
                  Query("60 * sum by (status) (rate(virtgauge_control_alerts_received_total{@host}[$__rate_interval]))",
                        "{{status}}"),
                  Query("sum(virtgauge_control_alerts_waiting{@host})", "waiting"), width=8, empty=NO_RULES),
            listing("Why rules did not act", "Alerts that matched a rule on which it did not act, by the guard that "
                    "stood in its way.",
                    Query(over_time(by="rule, reason", counter="virtgauge_control_rule_skips_total") + " > 0", "Times",
                          narrow=True),
                    labels={"rule": "Rule", "reason": "Guard"}, sort="Times", width=8, height=8, empty="No rule was held"),
            listing("Rules", "Each rule in the time shown: what it would have done, did and failed to do; how many guests it "
                    "leaves alone now since it just acted; and whether its circuit breaker is open.",
                    Query(over_time(by="instance, rule", counter="virtgauge_control_rule_matches_total"), "Alerts",
                          narrow=True),
                    Query(over_time('result="dry-run"', "instance, rule", RUNS), "Would have", narrow=True),
                    Query(over_time('result=~"done|undone|unchanged"', "instance, rule", RUNS), "Done", narrow=True),
                    Query(over_time('result=~"failed|unknown"', "instance, rule", RUNS), "Failed", narrow=True),
                    Query("max by (instance, rule) (virtgauge_control_rule_cooldowns{@host})", "Cooling down"),
                    Query("max by (instance, rule) (virtgauge_control_rule_breaker_open{@host})", "Breaker open",
                          words={"1": ("yes", "red"), "0": ("no", "text")}),
                    Query("time() - max by (instance, rule) (virtgauge_control_rule_last_run_timestamp_seconds{@host})",
                          "Last act", "s"),
                    labels={"rule": "Rule", "instance": "Host"}, sort="Alerts", height=8, empty=NO_RULES),
        )),
        Row("Who did what, from the audit trail", (infinity.acts_listing(height=12),), collapsed=True),
        Row("The audit trail in the archive", (
            graph("Records that wait", "Records of the audit trail that the database does not have yet.", "none",
                  Query("virtgauge_control_audit_waiting_records{@host}", "{{instance}}"),
                  empty="The control service has no archive"),
            graph("Records spooled and stored", "Records a minute: stored follows spooled while the database takes them.",
                  "opm", Query("60 * sum by (instance) (rate(virtgauge_control_audit_spooled_records_total{@host}"
                               "[$__rate_interval]))", "{{instance}} spooled"),
                  Query("60 * sum by (instance) (rate(virtgauge_control_audit_stored_records_total{@host}"
                        "[$__rate_interval]))", "{{instance}} stored"), empty="The control service has no archive"),
        ), collapsed=True),
        Row("Inside the guests, by their agents", (
            listing("Filesystems inside guests", "What the agents tell of each filesystem, the fullest first.",
                    Query("max by (domain, mountpoint) (libvirt_domain_agent_filesystem_used_bytes{@host} / "
                          "(libvirt_domain_agent_filesystem_size_bytes{@host} > 0))", "Used", "percentunit",
                          gauge=True, steps=levels.FILESYSTEM),
                    Query("max by (domain, mountpoint) (libvirt_domain_agent_filesystem_size_bytes{@host})", "Size",
                          "bytes"),
                    labels={"domain": "Guest", "mountpoint": "Mounted at"}, sort="Used", width=12,
                    empty="No agent is asked (control.agent.enabled)"),
            listing("Agents", "Whether each guest's agent is there and answers, and how far its clock is off.",
                    Query("max by (domain) (libvirt_domain_agent_connected{@host})", "There", narrow=True, words=YES_NO),
                    Query("max by (domain) (libvirt_domain_agent_up{@host})", "Answers", narrow=True, words=YES_NO),
                    Query("max by (domain) (libvirt_domain_agent_users{@host})", "Users", narrow=True),
                    Query("max by (domain) (libvirt_domain_agent_load5{@host})", "Load", narrow=True),
                    Query("max by (domain) (libvirt_domain_agent_time_drift_seconds{@host})", "Clock off", "s"),
                    labels={"domain": "Guest"}, width=12, empty="No agent is asked (control.agent.enabled)"),
        ), collapsed=True),
    ))
