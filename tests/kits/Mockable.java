import java.io.IOException;
import java.io.InputStream;
import java.util.List;
import java.util.jar.JarEntry;
import java.util.jar.JarFile;
import java.util.jar.JarOutputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import org.objectweb.asm.ClassReader;
import org.objectweb.asm.ClassVisitor;
import org.objectweb.asm.ClassWriter;
import org.objectweb.asm.MethodVisitor;
import org.objectweb.asm.Opcodes;
import org.objectweb.asm.Type;

/**
 * Rewrites android.jar for unit tests, as Android's Gradle plugin does: its methods throw, then they give 0 or null.
 * Usage: Mockable android.jar OUT PACKAGE...
 */
class Mockable {
    public static void main(String[] arguments) throws IOException {
        List<String> packages = List.of(arguments).subList(2, arguments.length);
        try (JarFile in = new JarFile(arguments[0]);
                JarOutputStream out = new JarOutputStream(Files.newOutputStream(Path.of(arguments[1])))) {
            for (JarEntry entry : (Iterable<JarEntry>) in.stream()::iterator) {
                String name = entry.getName();
                String folder = name.substring(0, name.lastIndexOf('/') + 1);
                if (!name.endsWith(".class") || !packages.contains(folder)) continue;
                out.putNextEntry(new JarEntry(name));
                try (InputStream bytes = in.getInputStream(entry)) {
                    ClassReader reader = new ClassReader(bytes);
                    ClassWriter writer = new ClassWriter(0);
                    reader.accept(new Methods(writer, reader.getSuperName()), 0);
                    out.write(writer.toByteArray());
                }
            }
        }
    }

    private static class Methods extends ClassVisitor {
        private final String parent;

        Methods(ClassVisitor next, String parent) {
            super(Opcodes.ASM9, next);
            this.parent = parent;
        }

        @Override
        public MethodVisitor visitMethod(int access, String name, String type, String signature, String[] thrown) {
            MethodVisitor method = super.visitMethod(access & ~Opcodes.ACC_NATIVE, name, type, signature, thrown);
            if ((access & Opcodes.ACC_ABSTRACT) != 0 || name.equals("<clinit>")) return method;
            Type result = Type.getReturnType(type);
            method.visitCode();
            if (name.equals("<init>")) {
                method.visitVarInsn(Opcodes.ALOAD, 0);
                method.visitMethodInsn(Opcodes.INVOKESPECIAL, parent, "<init>", "()V", false);
            }
            switch (result.getSort()) {
                case Type.VOID: break;
                case Type.LONG: method.visitInsn(Opcodes.LCONST_0); break;
                case Type.FLOAT: method.visitInsn(Opcodes.FCONST_0); break;
                case Type.DOUBLE: method.visitInsn(Opcodes.DCONST_0); break;
                case Type.OBJECT: case Type.ARRAY: method.visitInsn(Opcodes.ACONST_NULL); break;
                default: method.visitInsn(Opcodes.ICONST_0);
            }
            method.visitInsn(result.getOpcode(Opcodes.IRETURN));
            method.visitMaxs(2, 1 + Type.getArgumentsAndReturnSizes(type) / 4);
            method.visitEnd();
            return null; // its own code is left out
        }
    }
}
