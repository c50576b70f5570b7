"use strict";
// The search by need: the same table and the same integers as `instar.shelf.needing`, so that page and command find the same.
const instarFind = (() => {
  const split = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase().match(/[a-z0-9]+/g) ?? [];

  const stem = (word, table) => {
    if (table.whole.includes(word)) return word;
    for (const [ending, instead, least] of table.endings) {
      if (word.endsWith(ending) && word.length - ending.length >= Number(least)) {
        word = word.slice(0, word.length - ending.length) + instead;
        break;
      }
    }
    if (word.length > 3 && word.endsWith("e")) word = word.slice(0, -1);
    if (word.length > 3 && word.at(-1) === word.at(-2) && !"aeiou0123456789".includes(word.at(-1))) word = word.slice(0, -1);
    return word;
  };

  const stems = (text, table) => {
    const words = split(text).filter((word) => !table.stop.includes(word)).map((word) => stem(word, table));
    return [...new Set(words)].slice(0, table.longest);
  };

  const get = (object, key, otherwise) => (Object.hasOwn(object, key) ? object[key] : otherwise);

  const find = (text, table, most) => {
    const asked = stems(text, table);
    const rare = (word) => get(table.rare, word, table.unknown);
    const total = asked.reduce((sum, word) => sum + table.own * rare(word), 0);
    const score = new Map();
    const spoken = new Map();
    for (const word of asked) {
      const adds = new Map();
      const weight = new Map();
      for (const other of [word, ...get(table.alike, word, [])]) {
        const times = other === word ? table.own : table.like;
        for (const [place, add] of get(table.adds, other, [])) {
          adds.set(place, Math.max(adds.get(place) ?? 0, times * add));
          weight.set(place, Math.max(weight.get(place) ?? 0, times));
        }
      }
      for (const [place, add] of adds) {
        score.set(place, (score.get(place) ?? 0) + add);
        spoken.set(place, (spoken.get(place) ?? 0) + weight.get(place) * rare(word));
      }
    }
    const best = [...score.keys()].sort((a, b) => score.get(b) - score.get(a) || a - b).slice(0, most);
    return best.map((place) => ({
      entry: place,
      score: score.get(place),
      sure: 100 * spoken.get(place) >= table.share * total,
    }));
  };

  return { find, stems };
})();
