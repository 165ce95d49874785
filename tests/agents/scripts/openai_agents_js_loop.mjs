// The OpenAI Agents SDK for JavaScript, whole and streamed, with its default, /v1/responses.
import assert from 'node:assert';
import {Agent, run, tool} from '@openai/agents';

const asked = [];
const agent = new Agent({
  name: 'Guide',
  model: process.argv[2],
  tools: [
    tool({
      name: 'opening_hour',
      description: 'When a place opens.',
      parameters: {
        type: 'object',
        properties: {place: {type: 'string'}},
        required: ['place'],
        additionalProperties: false,
      },
      execute: async ({place}) => {
        asked.push(place);
        return `The ${place} opens at seven.`;
      },
    }),
  ],
});
const whole = await run(agent, 'When do harbour and market open?');
console.log(whole.finalOutput);
const streamed = await run(agent, 'When do harbour and market open?', {stream: true});
const parts = [];
for await (const part of streamed.toTextStream()) parts.push(part);
await streamed.completed;
assert.strictEqual(streamed.finalOutput, whole.finalOutput);
assert(parts.length > 10);
assert.deepStrictEqual(asked, ['harbour', 'market', 'harbour', 'market']);
