// Each kind of panel that the dashboards use, drawn by Grafana's own component where npm has one.
import { FieldType, getDisplayValueAlignmentFactors, getFieldDisplayName, reduceField } from '@grafana/data';
import { BarGauge, BigValue, TimeSeries } from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';
import { Empty } from './Empty.jsx';
import { StateTimeline } from './StateTimeline.jsx';

const PANELS = { timeseries: Graph, stat: Number_, bargauge: Bars, table: Listing, 'state-timeline': StateTimeline };

/** The inside of a panel. */
export function Inside(props) {
  const Kind = PANELS[props.panel.type];
  if (!Kind) {
    throw new Error(`nothing draws a panel of type ${props.panel.type}`);
  }
  return <Kind {...props} />;
}

const numbers = (frame) => frame.fields.filter((field) => field.type === FieldType.number);
const hasValues = (frames) => frames.some((frame) => frame.length > 0 && numbers(frame).length > 0);

function Graph({ panel, frames, width, height, scene }) {
  if (!hasValues(frames)) {
    return <Empty panel={panel} />;
  }
  const legend = { ...panel.options.legend };
  return (
    <TimeSeries frames={frames} width={width} height={height} legend={legend} timeRange={scene.timeRange}
      timeZone="utc" options={panel.options}>
      {(builder) => { scene.marks(builder); return null; }}
    </TimeSeries>
  );
}

const lastOf = (field) => reduceField({ field, reducers: ['lastNotNull'] }).lastNotNull;

function shownValues(frames) {
  return frames.flatMap((frame) => numbers(frame).map((field) => ({
    field, frame, value: { ...field.display(lastOf(field)), title: getFieldDisplayName(field, frame, frames) },
  })));
}

function Number_({ panel, frames, width, height, theme }) {
  const shown = shownValues(frames);
  if (shown.length === 0) {
    const value = { text: panel.fieldConfig.defaults.noValue ?? 'No data', numeric: NaN, color: theme.colors.text.secondary };
    return <BigValue value={value} width={width} height={height} theme={theme} colorMode="value" graphMode="none"
      textMode="value" justifyMode="auto" />;
  }
  const each = width / shown.length;
  return (
    <div style={{ display: 'flex' }}>
      {shown.map(({ field, frame, value }, at) => (
        <BigValue key={at} value={shown.length === 1 ? { ...value, title: undefined } : value} width={each} height={height} theme={theme}
          colorMode={panel.options.colorMode} graphMode={panel.options.graphMode} textMode={panel.options.textMode}
          justifyMode="auto" count={shown.length}
          sparkline={panel.options.graphMode === 'area' && frame.length > 1
            ? { x: frame.fields[0], y: { ...field, config: { ...field.config, custom: {} } } } : undefined} />
      ))}
    </div>
  );
}

function Bars({ panel, frames, width, height, theme }) {
  const shown = shownValues(frames);
  if (shown.length === 0) {
    return <Empty panel={panel} />;
  }
  const each = Math.min(40, height / shown.length - 8);
  const factors = getDisplayValueAlignmentFactors(shown.map(({ value }) => ({ display: value })));
  return shown.map(({ field, value }, at) => (
    <div key={at} style={{ marginBottom: 8 }}>
      <BarGauge value={value} field={field.config} display={field.display} width={width} height={each} theme={theme}
        orientation="horizontal" displayMode={panel.options.displayMode}
        alignmentFactors={factors} itemSpacing={8} />
    </div>
  ));
}

function Listing({ panel, frames, width, height }) {
  const [frame] = frames;
  if (!frame || frame.length === 0) {
    return <Empty panel={panel} />;
  }
  return <TableNG data={frame} width={width} height={height} cellHeight={panel.options.cellHeight}
    sortBy={panel.options.sortBy} noValue={panel.fieldConfig.defaults.noValue} enableVirtualization={false}
    fieldConfig={panel.fieldConfig} />;
}
