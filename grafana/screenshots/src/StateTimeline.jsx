// A state timeline: npm has no such component, so it is drawn here, a bar for each state of each series.
import { FieldType, getFieldDisplayName } from '@grafana/data';
import { Empty } from './Empty.jsx';

const LABELS = 150;
const AXIS = 22;

export function StateTimeline({ panel, frames, width, height, scene, theme }) {
  const rows = frames.flatMap((frame) => frame.fields.filter((field) => field.type === FieldType.number)
    .map((field) => ({ name: getFieldDisplayName(field, frame, frames), bars: bars(frame.fields[0], field, scene) })));
  if (rows.length === 0) {
    return <Empty panel={panel} />;
  }
  const states = new Map(rows.flatMap((row) => row.bars.map((bar) => [bar.text, bar.color])));
  const plot = width - LABELS;
  const each = (height - AXIS - 20) / rows.length;
  const x = (t) => LABELS + ((t / 1000 - scene.from) / (scene.to - scene.from)) * plot;
  return (
    <div>
      <svg width={width} height={height - 20} fontSize="12" fontFamily={theme.typography.fontFamily}>
        {rows.map((row, at) => (
          <g key={at} transform={`translate(0 ${at * each})`}>
            <text x={LABELS - 8} y={each / 2 + 4} textAnchor="end" fill={theme.colors.text.primary}>{row.name}</text>
            {row.bars.map((bar, number) => {
              const wide = Math.max(1, x(bar.to) - x(bar.from));
              return (
                <g key={number}>
                  <rect x={x(bar.from)} width={wide} y={each * 0.075} height={each * 0.85} fill={bar.color} fillOpacity="0.75" />
                  {wide > 7 * bar.text.length + 8 && each > 14 &&
                    <text x={x(bar.from) + wide / 2} y={each / 2 + 4} textAnchor="middle"
                      fill={theme.colors.getContrastText(bar.color)}>{bar.text}</text>}
                </g>
              );
            })}
          </g>
        ))}
        {ticks(scene, plot).filter((t) => x(t * 1000) < width - 20).map((t) => (
          <text key={t} x={x(t * 1000)} y={height - 26} textAnchor="middle" fill={theme.colors.text.primary}>
            {new Date(t * 1000).toISOString().slice(11, 16)}</text>
        ))}
      </svg>
      <div className="legend">
        {[...states].map(([text, color]) => <span key={text}><i style={{ background: color }} />{text}</span>)}
      </div>
    </div>
  );
}

/** Neighbouring points of one value as one bar; it ends where a point is missing. */
function bars(time, field, scene) {
  const found = [];
  field.values.forEach((value, at) => {
    if (value === null) {
      return;
    }
    const from = time.values[at];
    const to = Math.min(from + scene.stepS * 1000, scene.to * 1000);
    const last = found.at(-1);
    if (last && last.value === value && from - last.to < 500) {
      last.to = to;
    } else {
      const { text, color } = field.display(value);
      found.push({ value, from, to, text, color });
    }
  });
  return found;
}

function ticks(scene, plot) {
  const steps = [30, 60, 120, 300, 600, 900, 1800, 3600, 7200];
  const step = steps.find((s) => ((scene.to - scene.from) / s) * 70 < plot) ?? 14400;
  const first = Math.ceil(scene.from / step) * step;
  return Array.from({ length: Math.max(0, Math.floor((scene.to - first) / step) + 1) }, (_, at) => first + at * step);
}
