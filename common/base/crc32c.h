/*
 * crc32c: the checksum of KV page pieces (Castagnoli polynomial 0x1EDC6F41, reflected, as in
 * iSCSI).
 */
#ifndef BATON_COMMON_BASE_CRC32C_H
#define BATON_COMMON_BASE_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/**
 * Continues a checksum over n more bytes.
 * @param crc  0 to begin, else the value returned for the bytes before
 * Uses the processor's instruction where there is one; same value everywhere. crc32c(0,
 * "123456789", 9) is 0xE3069283.
 */
uint32_t crc32c(uint32_t crc, const void *data, size_t n);

#endif
