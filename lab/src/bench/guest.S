/* The guest of `cargo lab bench start`: a PVH kernel that says one byte on COM1 and goes to sleep for good.
   Entered in 32-bit protected mode (Xen, docs/misc/pvh.pandoc); interrupts are off and stay off. */

        .code32
        .globl _start
_start: movw $0x3f8, %dx
        movb $'!', %al
        outb %al, %dx
sleep:  hlt
        jmp sleep

/* XEN_ELFNOTE_PHYS32_ENTRY, 18: where the guest is entered. */
        .section .note.Xen, "a", @note
        .balign 4
        .long 4, 4, 18
        .asciz "Xen"
        .long _start
