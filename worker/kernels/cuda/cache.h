// Where queries, keys and values go.
//
//   one layer's pool:  block 0 | block 1 | …         a block: head 0 | head 1 | …   (this rank's heads)
//   one head of a block:  K as [16 positions][S], then V as [16 positions][S]       S: D rounded up to what is loaded at once
//
// What is behind D was zero when the pool was made, and stays so.

#define BLOCK 16

// Stores output `column` of the QKV product of a row.
DEVICE void store_qkv(const QkvPlaces *to, unsigned row, unsigned column, float value) {
    const unsigned width = to->heads * to->head_dim, part = column / width;
    const unsigned head = column % width / to->head_dim, d = column % to->head_dim;
    if (part == 0) {
        to->queries[((unsigned long long)row * to->heads + head) * to->head_stride + d] = narrow(value);
        return;
    }
    const unsigned position = to->at.positions[row];
    const unsigned block = to->at.tables[(unsigned long long)to->at.sequences[row] * to->table_blocks + position / BLOCK];
    element *keys = to->cache + ((unsigned long long)block * to->heads + head) * 2 * BLOCK * to->head_stride;
    keys[((part - 1) * BLOCK + position % BLOCK) * to->head_stride + d] = narrow(value);
}
