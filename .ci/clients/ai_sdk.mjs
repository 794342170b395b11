// Objects of a schema through the AI SDK, which holds each against it: one whole, one streamed, one of some words; each on a line.
// usage: node ai_sdk.mjs URL MODEL
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, streamObject } from "ai";
import { z } from "zod";

const [url, name] = process.argv.slice(2);
const provider = createOpenAICompatible({ name: "nanoinfer", baseURL: `${url}/v1`, apiKey: "none", supportsStructuredOutputs: true });
const kind = z.enum(["cat", "dog"]);
const schema = z.object({ kind, legs: z.array(kind).min(1).max(2), tame: z.boolean(), age: z.number().int().min(0).max(99), size: kind.nullable() });
const question = { model: provider(name), prompt: "What is a cat?", temperature: 0, maxOutputTokens: 230, maxRetries: 0 };
const tell = (object) => console.log(JSON.stringify(object));

tell((await generateObject({ ...question, schema })).object);
const streamed = streamObject({ ...question, schema });
for await (const part of streamed.partialObjectStream) void part;
tell(await streamed.object);
tell((await generateObject({ ...question, output: "enum", enum: ["cat", "dog"] })).object);
