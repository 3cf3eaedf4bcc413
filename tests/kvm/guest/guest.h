// What start.S and the C files share.

#define BOOT_PVH 1
#define BOOT_LINUX 2

#define CODE0 0x08
#define DATA0 0x10
#define CODE3 0x18
#define DATA3 0x20
#define CODE32 0x28
#define TSS 0x30
#define MOST_CPUS 64
#define GDT_LIMIT (TSS + 16 * MOST_CPUS - 1)

#define EXCEPTIONS 32
// The vector of the one interrupt that is taken, and the length of the table with it.
#define TAKEN 0x50
#define VECTORS (TAKEN + 1)
#define EXCEPTION_STUB 16
#define STACK_SIZE 16384

// Page 0x30 is what the start-up IPI names.
#define AP_START 0x30000
// Survives a guest reset: above the image, which is loaded anew, and within the smallest memory.
#define MARK 0xc00000
// Nothing is ever there: within the 32-bit window for BARs.
#define UNASSIGNED 0xd0000000
#define UNASSIGNED_PORT 0xe00

#ifndef __ASSEMBLER__
#include <stdint.h>
#include <stdbool.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

static inline void outb(u16 port, u8 value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static inline void outw(u16 port, u16 value) { __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port)); }
static inline void outl(u16 port, u32 value) { __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port)); }
static inline u8 inb(u16 port) { u8 v; __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static inline u16 inw(u16 port) { u16 v; __asm__ volatile("inw %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static inline u32 inl(u16 port) { u32 v; __asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port)); return v; }

// One instruction each, so that the access has exactly this width.
static inline u8 read8(u64 at) { u8 v; __asm__ volatile("movb (%1), %0" : "=q"(v) : "r"(at) : "memory"); return v; }
static inline u16 read16(u64 at) { u16 v; __asm__ volatile("movw (%1), %0" : "=r"(v) : "r"(at) : "memory"); return v; }
static inline u32 read32(u64 at) { u32 v; __asm__ volatile("movl (%1), %0" : "=r"(v) : "r"(at) : "memory"); return v; }
static inline u64 read64(u64 at) { u64 v; __asm__ volatile("movq (%1), %0" : "=r"(v) : "r"(at) : "memory"); return v; }
static inline void write8(u64 at, u8 v) { __asm__ volatile("movb %0, (%1)" : : "q"(v), "r"(at) : "memory"); }
static inline void write16(u64 at, u16 v) { __asm__ volatile("movw %0, (%1)" : : "r"(v), "r"(at) : "memory"); }
static inline void write32(u64 at, u32 v) { __asm__ volatile("movl %0, (%1)" : : "r"(v), "r"(at) : "memory"); }
static inline void write64(u64 at, u64 v) { __asm__ volatile("movq %0, (%1)" : : "r"(v), "r"(at) : "memory"); }

// boot.c: what the boot protocol told, the same for both.
struct range { u64 start, size; u32 kind; };
struct boot { const char *cmdline; u64 rsdp, initrd, initrd_size; unsigned count; struct range ranges[32]; };
const struct boot *boot(void);
// The value of `name=VALUE` on the command line, as a number or a word; `fallback` or NULL where there is none.
u64 number(const char *name, u64 fallback);
bool word_is(const char *name, const char *value);

// console.c
void put(char c);
// The port as it was after power-on, so that what is said is heard.
void console_again(void);
// As printf: %s, %u (decimal), %x (hexadecimal), both of 64 bits, and %%.
void print(const char *format, ...);
// The next character of COM1, waited for.
char get(void);

// power.c: by what the ACPI tables say.
void power_off(void);
void reset_by_acpi(void);
void wait_for_power_button(void);
// Address of an ACPI table, by its signature; 0 where there is none.
u64 find_table(const char *name);

// topology.c: what CPUID says of a processor's place. Noted in ring 0: ring 3 may hear of the host's.
void note_place(u32 cpu);
void topology(u64 cpus);

// chipset.c
void clocks(void);
void interrupts(void);

// pci.c
u32 config_read(u32 function, unsigned offset);
void config_write(u32 function, unsigned offset, u32 value);
u16 config_read16(u32 function, unsigned offset);
void config_write16(u32 function, unsigned offset, u16 value);
// The next function after `*function`, which is ~0 at the beginning.
bool next_function(u32 *function);
// Offset of a capability; 0 where there is none.
unsigned find_capability(u32 function, u8 id);
// Address of a memory BAR; 0 where it is none.
u64 bar(u32 function, unsigned index);
void pci_report(void);

// device.c
void device(void);
void pin(void);

// disk.c
void disk(void);
void requests(void);
// hotplug.c
void hotplug(void);
// virtio.c
// Address of the structure that the function's capability of this `cfg_type` names (virtio 1.2, 4.1.4), and the notification
// multiplier where it is asked for.
u64 virtio_structure(u32 function, u8 type, u32 *multiplier);
// Resets the device and negotiates VERSION_1 alone; false where it is refused.
bool virtio_negotiate(u64 common);
void entropy(void);
// hvc.c
void hvc(void);

// trouble.c
void panic(u8 events);
void watchdog(u32 ticks, u64 reloads);

// garbage.c
// Before any garbage: what functions and BARs there are.
void look_around(void);
void garbage(u64 seed, u32 cpu);
void garbage_power(u64 seed, u32 cpu);
#endif
