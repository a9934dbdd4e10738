"""Control and audit: who did what to the guests, and did it work?"""

from __future__ import annotations

from grafana.source.fleet import ALERTS
from grafana.source.grid import Annotation, Dashboard, Query, Row, graph, listing, number, upper

OPERATIONS = Annotation(
    "Operations that changed something",
    'sum by (instance, operation) (increase(virtgauge_control_operations_total{@host,outcome="changed"}'
    "[$__rate_interval])) > 0", "{{operation}}", "purple", tags="operation,instance")
FAILED = 'outcome=~"failed|timed-out|unreachable"'
REFUSED = 'outcome=~"refused|forbidden|busy|unconfirmed|not-found|invalid|unsupported"'

CONTROL = Dashboard(
    uid="virtgauge-control", title="virtgauge / Control and audit", annotations=(ALERTS, OPERATIONS),
    source="virtgauge_control_operations_running",
    description="Who did what to the guests, and did it work? Operations of the control service by outcome and time; the "
                "records themselves are shown by virtgauge control audit.",
    rows=(
        Row("Now", (
            number("Running", "Operations that may change something, running now.", "none",
                   "sum(virtgauge_control_operations_running{@host})", width=6),
            number("Changed something", "Operations that changed something, in the time shown.", "none",
                   'sum(increase(virtgauge_control_operations_total{@host,outcome="changed"}[$__rate_interval]))',
                   width=6, empty="None yet"),
            number("Failed", "Operations that did not do what they should, of late.", "none",
                   f"sum(increase(virtgauge_control_operations_total{{@host,{FAILED}}}[$__rate_interval]))",
                   steps=upper(1), width=6, empty="None"),
            number("Interface change open", "A change of host interfaces that waits for its confirmation; unconfirmed "
                   "it is rolled back.", "none", "max(virtgauge_control_interface_change_open{@host})", width=6,
                   words={"0": ("none", "green"), "1": ("waits", "orange")}, trend=False),
        )),
        Row("Operations", (
            graph("Operations by outcome", "Operations a second: changed, unchanged, read, dry-run, or the kind of "
                  "error.", "ops",
                  Query("sum by (outcome) (rate(virtgauge_control_operations_total{@host}[$__rate_interval]))",
                        "{{outcome}}"), empty="No operation yet"),
            graph("Operations by kind", "Operations a second by what they do.", "ops",
                  Query("sum by (operation) (rate(virtgauge_control_operations_total{@host}[$__rate_interval]))",
                        "{{operation}}"), empty="No operation yet"),
            graph("Failed and refused", "Failed: did not do what it should. Refused: not allowed, not possible in this "
                  "state, or not found.", "ops",
                  Query(f"sum by (operation) (rate(virtgauge_control_operations_total{{@host,{FAILED}}}"
                        "[$__rate_interval]))", "{{operation}} failed"),
                  Query(f"sum by (operation) (rate(virtgauge_control_operations_total{{@host,{REFUSED}}}"
                        "[$__rate_interval]))", "{{operation}} refused"), empty="None"),
            graph("Duration, 95 %", "Seconds within which 95 % of the operations of a kind end.", "s",
                  Query("histogram_quantile(0.95, sum by (operation, le) "
                        "(rate(virtgauge_control_operation_duration_seconds_bucket{@host}[$__rate_interval])))",
                        "{{operation}}"), empty="No operation yet"),
            listing("Operations of late", "Runs by operation and outcome, in the last few scrapes.",
                    Query("sum by (instance, operation, outcome) "
                          "(increase(virtgauge_control_operations_total{@host}[$__rate_interval]))", "Runs of late"),
                    Query("sum by (instance, operation) (rate("
                          "virtgauge_control_operation_duration_seconds_count{@host}[$__rate_interval]))", "A second",
                          "ops"),
                    labels={"instance": "Host", "operation": "Operation", "outcome": "Outcome"},
                    empty="No operation yet"),
        )),
    ))
