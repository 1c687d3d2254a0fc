"""Makes the files that Grafana loads, so that all panels look alike. Knows no metric.

python -m monitoring.grafana.build        writes dashboards/*.json

Written with the builders of Grafana's own SDK: mypy holds what is set here against Grafana's schema.
"""

import json
from pathlib import Path
from typing import TypeVar

from grafana_foundation_sdk.builders import common as build_common
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.builders import prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common, dashboard

from monitoring.grafana.engine import ENGINE
from monitoring.grafana.panels import Dashboard, Panel
from monitoring.grafana.redis import REDIS
from monitoring.grafana.service import SERVICE

FOLDER = Path(__file__).parent / "dashboards"
SOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="deskmate")
DASHBOARDS = (SERVICE, ENGINE, REDIS)
Drawn = TypeVar("Drawn", stat.Panel, timeseries.Panel)


def dressed(drawn: Drawn, panel: Panel) -> Drawn:
    """What numbers and curves have in common."""
    steps = [dashboard.Threshold(value, color) for value, color in panel.steps]
    drawn.title(panel.title).description(panel.description).datasource(SOURCE).unit(panel.unit).min(0)
    drawn.thresholds(build.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(steps))
    if panel.maximum is not None:
        drawn.max(panel.maximum)
    if panel.words:
        drawn.mappings([words(panel.words)])
    for index, (query, legend) in enumerate(panel.queries):
        asked = prometheus.Dataquery().ref_id(chr(ord("A") + index)).datasource(SOURCE).expr(query)
        drawn.with_target(asked.legend_format(legend or "__auto"))
    return drawn


def words(texts: dict[str, str]) -> dashboard.ValueMap:
    results = enumerate(texts.items())
    return dashboard.ValueMap(
        {value: dashboard.ValueMappingResult(text=text, index=index) for index, (value, text) in results}
    )


def numbers(panel: Panel) -> stat.Panel:
    named = common.BigValueTextMode.VALUE_AND_NAME if panel.queries[0][1] else common.BigValueTextMode.VALUE
    return (
        dressed(stat.Panel(), panel)
        .span(6)
        .height(4)
        .color_scheme(build.FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS))
        .color_mode(common.BigValueColorMode.VALUE)
        .graph_mode(common.BigValueGraphMode.AREA)
        .text_mode(named)
        .reduce_options(build_common.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False))
    )


def curves(panel: Panel) -> timeseries.Panel:
    stacking = common.StackingMode.NORMAL if panel.stacked else common.StackingMode.NONE
    lines = common.GraphThresholdsStyleMode.DASHED if len(panel.steps) > 1 else common.GraphThresholdsStyleMode.OFF
    return (
        dressed(timeseries.Panel(), panel)
        .span(8)
        .height(8)
        .color_scheme(build.FieldColor().mode(dashboard.FieldColorModeId.PALETTE_CLASSIC))
        .line_width(2)
        .fill_opacity(20 if panel.stacked else 0)
        .show_points(common.VisibilityMode.NEVER)
        .stacking(build_common.StackingConfig().mode(stacking).group("A"))
        .thresholds_style(build_common.GraphThresholdsStyleConfig().mode(lines))
        .legend(
            build_common.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(
            build_common.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING)
        )
    )


def render(board: Dashboard) -> str:
    others = build.DashboardLink("Deskmate").type(dashboard.DashboardLinkType.DASHBOARDS).tags(["deskmate"])
    built = (
        build.Dashboard(board.title)
        .uid(f"deskmate-{board.file}")
        .description(board.description)
        .tags(["deskmate"])
        .readonly()
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .refresh("15s")
        .time("now-1h", "now")
        .timezone("browser")
        .link(others.keep_time(True))
    )
    for id, panel in enumerate(board.panels, start=1):
        if isinstance(panel, str):
            built.with_row(build.Row(panel).id(id))
        else:
            built.with_panel(numbers(panel).id(id) if panel.number else curves(panel).id(id))
    return json.dumps(built.build(), cls=JSONEncoder, ensure_ascii=False, indent=2) + "\n"


def main() -> None:
    for board in DASHBOARDS:
        (FOLDER / f"{board.file}.json").write_text(render(board), encoding="utf-8")


if __name__ == "__main__":
    main()
