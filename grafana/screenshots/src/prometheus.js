// Asks Prometheus as Grafana does, and gives data frames as its Prometheus data source does.
import { FieldType } from '@grafana/data';

/** What the dashboard's variables and macros stand for; `scene` holds the page's parameters. */
export function plain({ expr, interval }, scene) {
  const least = interval ? Number(interval.replace(/s$/, '')) + scene.scrapeS : 0;
  return expr
    .replaceAll('$__rate_interval', `${Math.max(4 * scene.scrapeS, least)}s`)
    .replaceAll('$__range', `${Math.round(scene.to - scene.from)}s`)
    .replaceAll('$job', '.+')
    .replaceAll('$instance', scene.instance)
    .replaceAll('$domain', scene.domain);
}

/** The frames of one query: one for each series, or one table. */
export async function ask(target, scene, alone = true) {
  const asked = { query: plain(target, scene) };
  if (target.instant) {
    Object.assign(asked, { time: scene.to });
  } else {
    Object.assign(asked, { start: scene.from, end: scene.to, step: scene.stepS });
  }
  const answer = await fetch(`/api/v1/query${target.instant ? '' : '_range'}?${new URLSearchParams(asked)}`);
  const { status, error, data } = await answer.json();
  if (status !== 'success') {
    throw new Error(`${target.expr}: ${error}`);
  }
  const series = data.resultType === 'scalar' ? [{ metric: {}, value: data.result }] : data.result;
  return target.format === 'table' ? table(series, alone ? 'Value' : `Value #${target.refId}`) : series.map((one) => lines(one, target, scene));
}

function lines({ metric, values, value }, target, scene) {
  const points = values ? onGrid(values, scene) : [value];
  const { __name__: name, ...labels } = metric;
  const shown = target.legendFormat ? legend(target.legendFormat, metric) : textOf(name, labels);
  return {
    refId: target.refId,
    name: shown,
    length: points.length,
    fields: [
      { name: 'Time', type: FieldType.time, config: { interval: scene.stepS * 1000 }, values: points.map(([t]) => t * 1000) },
      { name: 'Value', type: FieldType.number, config: { displayNameFromDS: shown }, labels,
        values: points.map(([, v]) => number(v)) },
    ],
  };
}

// A point at each step, so that a line breaks where a value is missing: GraphNG itself fills the first frame only.
function onGrid(values, scene) {
  const at = new Map(values);
  const times = Array.from({ length: Math.floor((scene.to - scene.from) / scene.stepS) + 1 }, (_, i) => scene.from + i * scene.stepS);
  return times.map((time) => [time, at.get(time) ?? 'NaN']);
}

// An answer without series has its two columns, too, as Grafana's has.
function table(series, valueName) {
  const names = [...new Set(series.flatMap((one) => Object.keys(one.metric)))].sort();
  const field = (name, type, values) => ({ name, type, config: {}, values });
  return [{
    length: series.length,
    fields: [
      field('Time', FieldType.time, series.map((one) => one.value[0] * 1000)),
      ...names.map((name) => field(name, FieldType.string, series.map((one) => one.metric[name] ?? ''))),
      field(valueName, FieldType.number, series.map((one) => number(one.value[1]))),
    ],
  }];
}

// NaN is no value to Grafana.
const number = (text) => (text === 'NaN' ? null : Number(text));

function legend(format, metric) {
  return format.replace(/\{\{\s*(.+?)\s*\}\}/g, (_, name) => metric[name] ?? '');
}

function textOf(name, labels) {
  const inside = Object.entries(labels).map(([key, value]) => `${key}="${value}"`).join(', ');
  return `${name ?? ''}{${inside}}`;
}
