// The dashboard's annotations as upright lines in every graph.
import { ask } from './prometheus.js';

/** A function that adds the marks to a graph's configuration. */
export async function marks(dashboard, scene, theme) {
  const wanted = (dashboard.annotations?.list ?? []).filter((one) => one.expr && one.enable);
  const found = (await Promise.all(wanted.map((one) => times(one, scene)))).flat();
  return (builder) => builder.addHook('draw', (plot) => {
    const { left, top, width, height } = plot.bbox;
    found.forEach(({ time, colour }) => {
      const x = plot.valToPos(time, 'x', true);
      if (x < left || x > left + width) {
        return;
      }
      plot.ctx.save();
      plot.ctx.strokeStyle = plot.ctx.fillStyle = theme.visualization.getColorByName(colour);
      plot.ctx.setLineDash([3, 3]);
      plot.ctx.beginPath();
      plot.ctx.moveTo(x, top);
      plot.ctx.lineTo(x, top + height);
      plot.ctx.stroke();
      plot.ctx.beginPath();
      plot.ctx.moveTo(x - 4, top + height + 6);
      plot.ctx.lineTo(x + 4, top + height + 6);
      plot.ctx.lineTo(x, top + height);
      plot.ctx.fill();
      plot.ctx.restore();
    });
  });
}

/** Where the expression begins to have a value, or the times that its values are. */
async function times(annotation, scene) {
  const frames = await ask({ refId: 'A', expr: annotation.expr }, scene);
  return frames.flatMap(({ fields: [time, value] }) => (annotation.useValueForTime
    ? [...new Set(value.values.filter((at) => at !== null))]
    : time.values.filter((_, index) => value.values[index] !== null && (value.values[index - 1] ?? null) === null)
  ).map((at) => ({ time: at, colour: annotation.iconColor })));
}
