// The page in the reader's language. English is what stands in the page and in the code, and is the key to the other.
// A word that is missing here stays English; a browser test finds it.

import { $, stored } from "./dom.js";

const CHINESE = {
  "Skip to the message": "跳到输入框", "Conversations": "会话", "About the model": "关于模型", "Panels": "面板", "Panel": "面板",
  "Settings": "设置", "Live view": "实时视图", "New chat": "新会话", "Search": "搜索", "Search conversations": "搜索会话",
  "Export": "导出", "Import": "导入", "Save all conversations as a file": "把全部会话存成文件", "Add conversations from a file": "从文件添加会话",
  "Conversation": "会话", "What shall we talk about?": "想聊点什么？", "System text of this conversation": "本会话的系统提示",
  "How the model should behave": "模型应当怎样表现", "Message": "消息", "Send": "发送", "Stop": "停止", "Token": "Token", "Model": "模型", "Close": "关闭",
  "Speed of the last answer": "上一条回答的速度", "tokens a second": "token/秒", "Tokens a second of the last answer": "上一条回答每秒的 token 数",
  "Time to the first token, and the pace after it, appear with an answer.": "回答之后，这里显示首个 token 的时间和之后的节奏。",
  "Ranks": "Rank", "KV blocks, step by step": "KV 块，逐步回放", "Step": "步", "Pace of the replay": "回放速度",
  "never used or blank": "从未用过或已清空", "kept for prompts that begin alike": "留给开头相同的提示词", "filling, a colour a text": "正在写入，一条文本一种颜色", "shared": "共享",
  "Click a token of an answer to see why it was chosen and where the time of its step went.": "点一下回答中的 token，看它为什么被选中、这一步的时间花在哪里。",
  "What is left empty is as the server has it, in grey.": "留空的项按服务器的默认值，以灰色显示。",
  "Tint tokens by how unlikely they were": "越不可能的 token 颜色越深", "Theme": "主题", "As the system": "跟随系统", "Light": "浅色", "Dark": "深色", "Language": "语言",
  "Defaults": "恢复默认", "Done": "完成", "API key": "API 密钥", "That key is not the server's.": "密钥不对。",
  "This server wants a key. It is kept until this tab is closed.": "服务器需要密钥。密钥保留到这个标签页关闭为止。", "Key": "密钥", "Cancel": "取消", "Use": "使用",
  "Temperature": "温度", "Top p": "Top p", "Top k": "Top k", "Min p": "Min p", "Repetition penalty": "重复惩罚", "Most tokens": "最多 token 数", "Seed": "随机种子",
  "the server does not answer": "服务器没有应答", "The server does not answer": "服务器没有应答", "the answer broke off": "回答中断了",
  "an API key is needed": "需要 API 密钥", "An API key is needed": "需要 API 密钥", "the server is shutting down": "服务器正在关闭", "The server is shutting down": "服务器正在关闭",
  "Error": "错误", "Answer": "回答", "{n} tokens": "{n} 个 token", "{n} a second": "每秒 {n} 个", "first after {n} ms": "首个在 {n} 毫秒后", "cut at the most tokens": "到达最多 token 数而截断", "stopped": "已停止",
  "Untitled": "未命名", "Rename": "改名", "Delete": "删除", "Title": "标题", "Nothing is found.": "没有找到。", "What you talk about is kept here, in this browser.": "聊过的内容保存在这个浏览器里。",
  "Delete “{title}”? It cannot be had back.": "删除“{title}”？删除后无法恢复。", "before": "之前的版本", "Thinking": "思考过程",
  "Answer; arrow keys walk through its tokens": "回答；用方向键逐个查看 token", "The page was left while this answer came.": "这条回答生成到一半时页面被关闭了。",
  "Go on": "继续", "Try again": "再试一次", "Retry": "重答", "Edit": "编辑", "Source": "原文", "The text as the model wrote it, every token of it": "模型写出的原文，每个 token 都在",
  "Edit the message": "编辑消息", "Copy": "复制", "Copied": "已复制", "Table": "表格",
  "Enter sends, Shift Enter breaks the line, Esc stops, ↑ edits the last message": "Enter 发送，Shift Enter 换行，Esc 停止，↑ 编辑上一条消息",
  "An answer is coming: Esc stops it, then Enter sends.": "正在回答：按 Esc 停止后，Enter 才能发送。",
  "Family": "家族", "Parameters": "参数", "Computed in": "计算精度", "Weights, all ranks": "权重（全部 rank）", "Layers": "层数", "Width": "宽度", "Heads": "注意力头",
  "{n}, on {kv} of keys and values": "{n}，共用 {kv} 个键值头", "Vocabulary": "词表", "Longest text": "最长文本", "Chat template": "对话模板", "its own": "自带", "none: a plain transcript": "没有：用普通文字记录",
  "System text": "系统提示", "obeyed, as far as the model does": "会交给模型", "the template has no place for one": "模板里没有它的位置", "Thinks aloud": "显示思考", "yes": "是", "no": "否", "Calculator": "计算器", 
  "More": "更多", "Lessons: how a model is served, step by step": "教程：一步步了解模型如何提供服务", "HTTP: the routes and their fields": "HTTP：各条路由和字段", "The same for programs": "同样内容，给程序看", "Metrics, for Prometheus": "指标（Prometheus）",
  "another each time": "每次不同", "as many as fit": "能放下多少就多少", ", rank {n} lost": "，rank {n} 丢失", "1 rank": "1 个 rank", "{n} ranks": "{n} 个 rank",
  "The built-in model is tiny: it knows 4,000 English words, capitals and sums up to 12, and nothing else. ": "内置模型很小：只认识 4,000 个英语单词、各国首都和 12 以内的加法，只会英语。",
  " This model has no chat template: turns are written as User: and Assistant:, which it may not have learned.": "这个模型没有对话模板：对话写成 User: 和 Assistant:，它未必学过。",
  "Every answer shows how it came about: point at a token to see how likely it was and what else could have stood there, click it to see why it was chosen and where the time went.": "每条回答都能看到它是怎么来的：指向一个 token，看它有多可能、还有哪些候选；点一下，看它为什么被选中、时间花在哪里。",
  "This model's chat template has no place for a system text: it is left out.": "这个模型的对话模板里没有系统提示的位置：它会被略去。",
  "Set all of these back to what they were at first?": "把这些设置全部恢复成最初的值？", "{n} conversations were added": "添加了 {n} 个会话", "{name} cannot be imported: {why}.": "{name} 无法导入：{why}。",
  "This browser does not keep what is said here. Export what you want to have later.": "这个浏览器不保存这里的内容。想留下的请导出。",
  "this file is no JSON": "文件不是 JSON", "this file holds no conversations": "文件里没有会话",
  "click: why, and what it took": "点击：为什么，花了多少时间", "the most likely token": "最可能的 token", "the second choice": "第二候选", "the third choice": "第三候选", "the fourth choice": "第四候选", "the fifth choice": "第五候选", "not among the first five": "不在前五之列",
  "The chain and the step were not kept beyond the visit in which this was answered.": "采样链和这一步的时间只在回答的那次访问中保留。",
  "Not drawn: a result of the calculator.": "不是抽取的：计算器的结果。", "{n} tokens, {p}": "{n} 个 token，{p}", "{n} logits changed": "改变了 {n} 个 logit", "nothing": "没有",
  "Alternatives": "候选", "token": "token", "model": "模型", "drawn": "抽取时", "What the sampling chain removed": "采样链去掉了什么", "processor": "处理器", "removed": "去掉", "Every processor is neutral.": "每个处理器都是中性的。",
  "all-reduce: {stage}": "all-reduce：{stage}", "Stage by stage": "逐个阶段", "the rest": "其余", "rank {n}: {ms} ms": "rank {n}：{ms} 毫秒", "Step {n}: {sequences} texts, {tokens} tokens, {ms} ms": "第 {n} 步：{sequences} 条文本，{tokens} 个 token，{ms} 毫秒",
  "kind product": "矩阵乘法", "kind attention": "注意力", "kind rows": "逐行运算", "kind reduction": "all-reduce",
  "Milliseconds on each rank, whose number stands before its bar; the pale part, behind the +, is waiting for other ranks. Each sums to what the rank needed: {all}.": "每个 rank 上的毫秒数，条形前是 rank 的编号；浅色部分（加号后）是在等别的 rank。各项之和就是这个 rank 用的时间：{all}。",
  "{why}. What is shown below is how it was at {time}.": "{why}。下面显示的是 {time} 时的情形。",
  "{name} {from} to {to} of {whole}": "{name}：{from} 到 {to}，共 {whole}", "heads {from} to {to} of {whole}": "头 {from} 到 {to}，共 {whole}", " on {n} of {whole} of keys and values": "，用到 {whole} 个键值头中的 {n} 个",
  "Rank": "Rank", "{n} of {whole} heads": "{whole} 个头中的 {n} 个", "FFN": "FFN", "vocabulary": "词表", "lost: another takes its place": "已丢失：另一个正在顶替",
  "lost once, last back after {s}": "丢失过一次，{s} 后恢复", "lost {n} times, last back after {s}": "丢失过 {n} 次，最近一次 {s} 后恢复",
  "Step {n}: {texts} texts, {tokens} tokens, {ms} ms": "第 {n} 步：{texts} 条文本，{tokens} 个 token，{ms} 毫秒", "; {n} of them read their prompt": "；其中 {n} 条在读提示词",
  "Text {ids} has ended or given way: {n} of its blocks are kept": "文本 {ids} 已结束或让位：保留了它的 {n} 个块", "Rank {ids} is lost: its part of every block is out of reach": "rank {ids} 丢失：每个块里它的那部分都够不着了",
  "Another rank is in its place after {s}, and every text goes on": "{s} 后有另一个 rank 顶替，所有文本继续", "The pools are blank: every text is computed again": "各 rank 的池已清空：所有文本重新计算", "Nothing has been computed yet.": "还没有计算过什么。",
  "Pause": "暂停", "Play": "播放", "{n} steps and other events, {at} of them shown; height: tokens": "{n} 个步骤和事件，显示到第 {at} 个；高度是 token 数",
  "{held} of {total} blocks of {positions} positions are held": "{total} 个块（每块 {positions} 个位置）中有 {held} 个被持有", ", {n} of them shared": "，其中 {n} 个共享", "; {n} are kept for prompts that begin alike": "；{n} 个留给开头相同的提示词", "; the {n} that were never needed are not drawn": "；从未用到的 {n} 个没有画出", "; a square is {n} blocks side by side": "；一格是相邻的 {n} 个",
  "blocks {from} to {to}: {held} held by {ids}, {kept} kept, {blank} blank": "块 {from} 到 {to}：{held} 个被 {ids} 持有，{kept} 个保留，{blank} 个空白",
  "#{id}: {prompt} + {own} tokens": "#{id}：{prompt} + {own} 个 token", ", {n} blocks found": "，命中 {n} 个块", "and {n} more": "还有 {n} 条",
  "block {n}: from position {from} of text {ids}, {p} % full": "块 {n}：文本 {ids} 从位置 {from} 起，已满 {p} %", "block {n}: kept, nobody holds it": "块 {n}：保留着，没有人持有", "block {n}: blank": "块 {n}：空白",
  "first token after {first} ms, then {each} ms each": "首个 token 在 {first} 毫秒后，之后每个 {each} 毫秒",
  ".": "。", "Lessons": "教程", "Chapters": "章节", "Understand": "理解", "Optimise": "优化", "Serve": "服务", "Build it": "动手", "Build": "构建",
};
const ENGLISH = {
  "kind product": "products", "kind attention": "attention", "kind rows": "row by row", "kind reduction": "all-reduces",
};

const spoken = stored("language", null) ?? (navigator.language.startsWith("zh") ? "zh" : "en");
export const language = () => spoken;
const dictionary = spoken === "zh" ? CHINESE : ENGLISH;
document.documentElement.lang = spoken;

/** A text of the page with values in the places of their names. */
export function t(text, values = {}) {
  if (spoken === "zh" && !(text in CHINESE)) console.error(`no Chinese for: ${text}`);
  const filled = (dictionary[text] ?? text).replace(/\{(\w+)\}/g, (_, name) => values[name]);
  return filled.replace(/(^|[^\d.,])1 (token|text|block|logit|conversation|step)s\b/g, "$11 $2").replace("1 of them read their", "1 of them reads its");
}

/** Says in the reader's language what stands below `root` in English: texts, or the properties that `data-t` names. */
export function speak(root) {
  for (const element of root.querySelectorAll("[data-t]")) {
    for (const name of element.dataset.t.split(" ").filter(Boolean).concat(element.dataset.t ? [] : ["textContent"])) {
      element[name] = t(element[name]);
    }
  }
  $("language") && ($("language").value = language());
}
