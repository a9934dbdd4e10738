// Gives frames what Grafana's core gives them before a panel draws: defaults, overrides, colours, formats.
import {
  createDataFrame, FieldType, getDisplayProcessor, getFieldDisplayName, transformDataFrame,
} from '@grafana/data';
import { firstValueFrom } from 'rxjs';

// What each kind of panel takes where the dashboard says nothing, as in its plugin.
const COLOURS = {
  timeseries: { mode: 'palette-classic' }, stat: { mode: 'thresholds' }, bargauge: { mode: 'thresholds' },
  table: { mode: 'thresholds' }, 'state-timeline': { mode: 'continuous-GrYlRd' },
};
const CUSTOM = {
  timeseries: {
    drawStyle: 'line', lineInterpolation: 'linear', lineWidth: 1, fillOpacity: 0, gradientMode: 'none',
    showPoints: 'auto', pointSize: 5, spanNulls: false, axisPlacement: 'auto', axisLabel: '',
    scaleDistribution: { type: 'linear' }, stacking: { group: 'A', mode: 'none' }, thresholdsStyle: { mode: 'off' },
  },
  table: { align: 'auto', cellOptions: { type: 'auto' }, inspect: false },
};

/** The frames with each field's configuration, range and display processor; a new frame for each. */
export async function dressed(panel, frames, theme) {
  const moved = panel.transformations?.length
    ? await firstValueFrom(transformDataFrame(panel.transformations, frames.map(createDataFrame), { interpolate: (v) => v }))
    : frames;
  let seriesIndex = -1;
  const range = extent(moved);
  return moved.map((frame, frameIndex) => ({ ...frame, fields: frame.fields.map((field) => {
    const numeric = field.type === FieldType.number;
    const made = { ...field, config: configuration(panel, field, frame, moved) };
    made.state = { seriesIndex: numeric ? ++seriesIndex : undefined,
      origin: { frameIndex, fieldIndex: frame.fields.indexOf(field) },
      range: numeric ? limits(made.config, range) : undefined };
    if (field.type === FieldType.time) {
      return { ...made, config: { ...field.config } };
    }
    made.state.displayName = getFieldDisplayName({ ...made, state: {} }, frame, moved);
    if (panel.type === 'bargauge') {
      made.config = { ...made.config, min: made.state.range?.min, max: made.state.range?.max };
    }
    made.display = getDisplayProcessor({ field: made, theme, timeZone: 'utc' });
    made.getLinks = () => (made.config.links ?? []).map((link) => ({ href: '#', title: link.title, target: '_self' }));
    return made;
  }) }));
}

function configuration(panel, field, frame, all) {
  const { defaults, overrides } = panel.fieldConfig;
  const made = {
    color: COLOURS[panel.type], ...field.config, ...structuredClone(defaults),
    custom: { ...structuredClone(CUSTOM[panel.type] ?? {}), ...structuredClone(defaults.custom ?? {}) },
  };
  // Not the name that a transformation has kept from before it renamed the field.
  const name = getFieldDisplayName({ ...field, state: {} }, frame, all);
  for (const { matcher, properties } of overrides) {
    if (matcher.id === 'byName' ? name === matcher.options : pattern(matcher.options).test(name)) {
      properties.forEach(({ id, value }) => put(made, id.split('.'), value));
    }
  }
  return made;
}

// As Grafana's stringToJsRegex: between slashes it is as it stands, else it must match the whole.
function pattern(text) {
  const found = text.match(/^\/(.*)\/([a-z]*)$/);
  return found ? new RegExp(found[1], found[2]) : new RegExp(`^${text}$`);
}

function put(target, [first, ...rest], value) {
  if (rest.length) {
    put((target[first] ??= {}), rest, value);
  } else {
    target[first] = value;
  }
}

function extent(frames) {
  const values = frames.flatMap((frame) => frame.fields.filter((field) => field.type === FieldType.number)
    .flatMap((field) => field.values.filter((value) => value !== null && Number.isFinite(value))));
  return { min: Math.min(...values), max: Math.max(...values) };
}

function limits(config, range) {
  const min = config.min ?? range.min;
  const max = config.max ?? range.max;
  return { min, max, delta: max - min };
}
