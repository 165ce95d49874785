// The Vercel AI SDK, whole and streamed, with each provider's default.
import assert from 'node:assert';
import {generateText, jsonSchema, stepCountIs, streamText, tool} from 'ai';
import {createOpenAI} from '@ai-sdk/openai';
import {createAnthropic} from '@ai-sdk/anthropic';

const [name, ...kinds] = process.argv.slice(2);
const providers = {
  responses: () => createOpenAI()(name),
  chat: () => createOpenAI().chat(name),
  messages: () => createAnthropic()(name),
};
const asked = [];
const tools = {
  opening_hour: tool({
    description: 'When a place opens.',
    inputSchema: jsonSchema({
      type: 'object',
      properties: {place: {type: 'string'}},
      required: ['place'],
      additionalProperties: false,
    }),
    execute: async ({place}) => {
      asked.push(place);
      return `The ${place} opens at seven.`;
    },
  }),
};
for (const kind of kinds) {
  const settings = {
    model: providers[kind](),
    tools,
    stopWhen: stepCountIs(5),
    prompt: 'When do harbour and market open?',
  };
  const whole = await generateText(settings);
  console.log(whole.text);
  const streamed = streamText(settings);
  const parts = [];
  for await (const part of streamed.fullStream) {
    assert(part.type !== 'error', JSON.stringify(part));
    if (part.type === 'text-delta') parts.push(part.text);
  }
  assert.strictEqual(await streamed.text, whole.text);
  assert(parts.length > 10);
  assert((await streamed.totalUsage).outputTokens > 0);
}
assert.deepStrictEqual(asked, Array(2 * kinds.length).fill(['harbour', 'market']).flat());
