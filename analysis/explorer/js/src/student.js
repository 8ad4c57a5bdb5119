// Quantiles of Student's t distribution. The distribution function is a regularised incomplete beta
// function (Abramowitz and Stegun 26.5.27), computed by Lentz's continued fraction (26.5.8; Press et
// al., Numerical Recipes, 6.4); it is inverted by Newton's method, guarded by bisection.


// log of Gamma(a + 1/2) / Gamma(a), by its asymptotic series from a = 15 on and the recurrence of
// Gamma below: the difference of two logarithms of Gamma would lose the digits of a large a.
function halfStep(a) {
  let shift = 0;
  for (; a < 15; a++) shift += Math.log(a / (a + 0.5));
  const z = 1 / (a * a);
  const series = -1 / 8 + z * (1 / 192 - z * (1 / 640 - z * (17 / 14336 - z * (31 / 18432))));
  return 0.5 * Math.log(a) + series / a + shift;
}

function fraction(a, b, x) {
  let c = 1, d = 1 - ((a + b) * x) / (a + 1);
  d = 1 / (Math.abs(d) < 1e-300 ? 1e-300 : d);
  let h = d;
  for (let m = 1; m < 10000; m++) {
    for (const e of [(m * (b - m) * x) / ((a + 2 * m - 1) * (a + 2 * m)),
      (-(a + m) * (a + b + m) * x) / ((a + 2 * m) * (a + 2 * m + 1))]) {
      d = 1 + e * d; d = 1 / (Math.abs(d) < 1e-300 ? 1e-300 : d);
      c = 1 + e / c; if (Math.abs(c) < 1e-300) c = 1e-300;
      h *= d * c;
    }
    if (Math.abs(d * c - 1) < 1e-15) break;
  }
  return h;
}

// P(T > t) for t > 0: half of the regularised incomplete beta function I_x(df / 2, 1 / 2).
export function upper(t, df) {
  const a = df / 2, b = 0.5, ratio = (t * t) / df;
  const x = 1 / (1 + ratio), rest = ratio / (1 + ratio); // 1 - x without cancellation
  const logs = -a * Math.log1p(ratio) + b * Math.log(rest) + halfStep(a) - 0.5 * Math.log(Math.PI);
  const power = Math.exp(logs);
  if (x < (a + 1) / (a + b + 2)) return (power * fraction(a, b, x)) / a / 2;
  return (1 - (power * fraction(b, a, rest)) / b) / 2;
}

const NORMAL = 1.959963984540054; // the 0.975 quantile of the standard normal distribution
const kept = new Map();

// The t with P(|T| < t) = 0.95; NaN where the degrees of freedom are none.
export function critical(df) {
  if (!(df > 0)) return NaN;
  if (!Number.isFinite(df) || df > 1e7) {
    // Abramowitz and Stegun 26.7.5, to the first order: further terms are below 1e-13 here.
    return NORMAL + (Number.isFinite(df) ? (NORMAL ** 3 + NORMAL) / (4 * df) : 0);
  }
  if (kept.has(df)) return kept.get(df);
  let low = 0, high = 2;
  while (upper(high, df) > 0.025) { low = high; high *= 2; }
  const front = halfStep(df / 2) - 0.5 * Math.log(df * Math.PI);
  let t = (low + high) / 2;
  for (let i = 0; i < 200; i++) {
    const off = upper(t, df) - 0.025;
    if (off > 0) low = t; else high = t;
    const density = Math.exp(front - ((df + 1) / 2) * Math.log1p((t * t) / df));
    let next = t + off / density;
    if (!(next > low && next < high)) next = (low + high) / 2;
    if (Math.abs(next - t) <= 1e-14 * t) { t = next; break; }
    t = next;
  }
  kept.set(df, t);
  return t;
}
